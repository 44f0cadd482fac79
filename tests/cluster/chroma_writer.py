"""Another process: `python -m tests.cluster.chroma_writer STORE PORT` adds a document, says so, and
deletes another one once it is told to."""

from __future__ import annotations

import sys

import chromadb

from fusionrag_integrations import Store
from fusionrag_integrations.documents.types import DocumentKey
from tests.synthetic_store import RandomEmbedding, update

EMBEDDING = RandomEmbedding(8)


def main() -> None:
    path, port = sys.argv[1:]
    client = chromadb.HttpClient(host="127.0.0.1", port=int(port))
    with Store.open(path, EMBEDDING, index=client) as store:
        with store.writing(), store.changes.begin(lambda: None):
            store.changes.replace([update(7, 6)])
        sys.stdout.write("added\n")
        sys.stdout.flush()
        sys.stdin.readline()
        with store.writing(), store.changes.begin(lambda: None):
            store.changes.delete([DocumentKey("d00007", "")])


if __name__ == "__main__":
    main()
