"""Finds the chunks nearest to a question.

base.py               VectorIndex: the port for an index
exact.py              ExactSearch: compares all vectors while they fit, else asks an index
matrix.py             these vectors as one matrix
collection_index.py   CollectionIndex: a VectorIndex in a collection of Chroma's
chroma.py             ChromaIndex: one in a directory
given.py              one on a client of chromadb's, or in a collection, that a caller gave
chroma_connection.py  ChromaConnection: the port by which a collection is reached
chroma_directory.py   in a directory: opened again after changes and forks, errors translated
chroma_given.py       by a client that a caller gave: errors translated
entries.py            which entries of a collection are a store's, and what distances say
chroma_files.py       the directory: writable, enough room, temporary copies
chroma_process.py     what Chroma keeps per process: views of directories, threads
filters.py            metadata filters in Chroma's terms
vectors.py            unit vectors, and checks that all indexes share
filling.py            fills an index from the catalog's vectors
check.py              checks an index against the catalog, in a process of its own
"""
