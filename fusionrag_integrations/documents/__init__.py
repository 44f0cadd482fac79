"""Documents and their chunks, without torch: reading, chunking, naming and embedding them.

types.py          Document, Passage, Chunk; a chunk's canonical text
metadata.py       metadata as JSON types
readers.py        files -> documents
passages.py       passages split elsewhere -> documents
chunking.py       documents -> chunks
keys.py           ids of chunks and keys of KV records, as hashes
named.py          an embedding named as MODULE:NAME
chunk_record.py   a chunk with its tokens, KV keys and context trace
handles.py        what a search returns: chunks, with handles to their KV
embedding.py      text -> vectors, by any framework's embedding or a lexical one
"""

from fusionrag_integrations.documents.readers import read_documents

__all__ = ["read_documents"]
