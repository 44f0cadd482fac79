"""Requests on their way to answers, one and many."""
