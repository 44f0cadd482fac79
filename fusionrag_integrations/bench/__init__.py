"""Measuring: metrics, and comparisons of strategies on questions with known answers."""
