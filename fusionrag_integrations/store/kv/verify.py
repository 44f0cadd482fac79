"""Checks that the files in a directory are usable KV records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fusionrag_integrations.errors import KVForeignError, KVMissingError, KVRecordError
from fusionrag_integrations.store.kv.local import SUFFIX, LocalKVFiles
from fusionrag_integrations.store.kv.record_files import RecordFiles


@dataclass(frozen=True, slots=True)
class RecordProblem:
    """A file that isn't a usable record, with the error of reading it."""

    path: Path
    error: KVRecordError


def verify(
    files: LocalKVFiles,
    signature: str,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Iterator[RecordProblem]:
    """Read every record and yield the bad ones. progress: called with files done and the total."""
    records, paths = RecordFiles(files, signature), files.paths()
    for done, path in enumerate(paths, start=1):
        try:
            if not files.is_record(path):
                raise KVForeignError(
                    f"{path} isn't named like a KV record, which is ab/abcd...{SUFFIX}"
                )
            records.check(path.name.removesuffix(SUFFIX))
        except KVMissingError:
            pass  # deleted since it was listed
        except KVRecordError as error:
            yield RecordProblem(path, error)
        progress(done, len(paths))
