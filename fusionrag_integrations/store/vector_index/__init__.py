"""Finds the chunks nearest to a question.

base.py             VectorIndex: the port for an index
exact.py            ExactSearch: compares all vectors while they fit into memory, else asks an index
matrix.py           these vectors as one matrix
chroma.py           ChromaIndex: a VectorIndex in a directory, by Chroma
chroma_client.py    its connection: opened again after changes and forks, errors translated
chroma_files.py     its directory: writable, enough room, temporary copies
chroma_process.py   what Chroma keeps per process: views of directories, threads
filters.py          metadata filters in Chroma's terms
vectors.py          unit vectors, and checks that all indexes share
filling.py          fills an index from the catalog's vectors
check.py            checks an index against the catalog, in a process of its own
"""
