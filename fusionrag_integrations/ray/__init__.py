"""Ingest on Ray; the extra `ray`.

indexing/   documents to stored KV by several workers, with Ray Data
"""
