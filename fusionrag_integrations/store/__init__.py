"""Where KV records are kept. The on-disk format is described in docs/kv_format.md."""

from fusionrag_integrations.store.files import FORMAT_VERSION, FileKVStore, RecordProblem, verify
from fusionrag_integrations.store.protocol import KVReader, KVStore
from fusionrag_integrations.store.shared import SharedReads

__all__ = [
    "FORMAT_VERSION",
    "FileKVStore",
    "KVReader",
    "KVStore",
    "RecordProblem",
    "SharedReads",
    "verify",
]
