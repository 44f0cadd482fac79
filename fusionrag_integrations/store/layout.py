"""The names of everything in a store's directory.

store.json           what the store was made with; a copy is in documents/
catalog.sqlite       documents, chunks, their tokens and KV keys              (SQLite)
documents/           the same as files, to rebuild the catalog from           (see manifests)
index/               vectors of chunks; follows the catalog                   (Chroma)
index.json           where the index is instead, if the caller gives one
kv/                  KV records                                               (docs/kv_format.md)
corrections/         of fused KV, one file per scope
calibration.json     what was measured of the model
writing.lock         locked by the process that changes the store
unfinished           exists while the store is changed, and after a crash
"""

INFO_FILE = "store.json"
CATALOG_FILE = "catalog.sqlite"
DOCUMENTS_DIRECTORY = "documents"
INDEX_DIRECTORY = "index"
INDEX_NOTE_FILE = "index.json"
KV_DIRECTORY = "kv"
CORRECTIONS_DIRECTORY = "corrections"
CALIBRATION_FILE = "calibration.json"
LOCK_FILE = "writing.lock"
UNFINISHED_FILE = "unfinished"

REVISION_FILE = "revision.json"  # in documents/: a revision that the catalog has reached
DELETED_DIRECTORY = "deleted"  # in documents/: of documents that are being deleted
DRAFTS_DIRECTORY = "tmp"  # in several directories: files that are being written
ASIDE_SUFFIX = ".damaged"  # of damaged files that may be the only copy of something
