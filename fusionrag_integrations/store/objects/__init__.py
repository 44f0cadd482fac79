"""Named bytes at a URL: what a store that several machines share is made of.

base.py            Objects: the port
fsspec_objects.py  through fsspec: S3, GCS, Azure and others
directory.py       in a directory that machines share (file://)
opening.py         which of them a URL needs
"""
