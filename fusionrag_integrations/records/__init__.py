"""KV records as files, without torch. The format is described in docs/kv_format.md."""

from fusionrag_integrations.records.files import RecordFile, RecordFiles, RecordProblem, verify
from fusionrag_integrations.records.layout import FORMAT_VERSION, RecordHeader, is_key

__all__ = [
    "FORMAT_VERSION",
    "RecordFile",
    "RecordFiles",
    "RecordHeader",
    "RecordProblem",
    "is_key",
    "verify",
]
