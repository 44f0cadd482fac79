"""What has been ingested, and which KV belongs to which chunk: a SQLite file.

documents ──< chunks ──< neighbours      a fused key and the chunks it was made with, in order
              chunks ─── vectors         what the index is made of, and can be made of again
              chunks >── traces          what fusing showed, by fused key: each chunk's last one

Documents are named by scope and id. Ad-hoc chunks, kept from requests, are in none: their rows have
`captured` set, so that no name a user gives can be theirs.

catalog.py opens, creates and checks it; documents, chunks, kv, vectors and adhoc are its subjects;
changes.py has the writes that span them, rows.py the checksums, store_row.py the one row about the
store itself, and database.py the connection.
"""

from fusionrag_integrations.store.catalog.catalog import Catalog

__all__ = ["Catalog"]
