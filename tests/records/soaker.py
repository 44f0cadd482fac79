"""A process among others that use the same few records.

    python -m tests.records.soaker DIRECTORY ROLE NUMBER SECONDS

It fails at the first wrong byte and at every error but a record missing that is being deleted by
another process. At the end it tells how much it has done.
"""

from __future__ import annotations

import random
import sys
import time
from itertools import count
from pathlib import Path

from fusionrag_integrations.errors import KVMissingError
from fusionrag_integrations.store.kv.local import LocalKVFiles
from fusionrag_integrations.store.kv.record_files import RecordFiles
from fusionrag_integrations.store.kv.verify import verify
from tests.records.writer import LARGE, SIGNATURE, SMALL, data_of, header_of, say, write

STEADY = ("ab01", "ab02", "cd03")
FLEETING = ("ab04", "ef05")  # deleted now and then
KEYS = STEADY + FLEETING
WRITERS = 8  # at most; a version tells its writer
SIZES = {header_of(KEYS[0], shape=shape).file_bytes for shape in (SMALL, LARGE)}


def write_all(files: RecordFiles, number: int, turn: int) -> None:
    for key in KEYS:
        shape = LARGE if random.random() < 0.5 else SMALL
        write(files, key, turn * WRITERS + number, shape=shape)


def delete_all(files: RecordFiles, number: int, turn: int) -> None:
    for key in FLEETING:
        files.delete(key)
    time.sleep(0.002)


def verify_all(files: RecordFiles, number: int, turn: int) -> None:
    local = LocalKVFiles(files.files.directory)  # opening must not take living writers' drafts
    files = RecordFiles(local, SIGNATURE)
    problems = [problem.error for problem in verify(local, SIGNATURE)]
    assert problems == []
    listed = list(files.entries())
    assert {key for key, _, _ in listed} <= set(KEYS), listed
    assert all(nbytes in SIZES for _, nbytes, _ in listed), listed


class Reader:
    """Reads whole or in pieces, and sees that no writer's versions go back in time."""

    def __init__(self) -> None:
        self.newest: dict[tuple[str, int], int] = {}

    def __call__(self, files: RecordFiles, number: int, turn: int) -> None:
        key = random.choice(KEYS)
        try:
            with files.open(key) as record:
                header = record.header
                data = memoryview(bytearray(header.data_bytes))
                if random.random() < 0.5:
                    record.read_all(data)
                else:
                    record.read_tokens(data)
                    for layer in header.layers:
                        record.read_layers(data, range(layer, layer + 1))
        except KVMissingError:
            assert key in FLEETING, f"{key} is missing"
            return
        assert header.key == key
        assert data == data_of(header), f"wrong bytes in {header}"
        version = int(header.neighbours[0], 16)
        writer = key, version % WRITERS
        assert version >= self.newest.get(writer, 0), f"{key} is older than before"
        self.newest[writer] = version


ROLES = {"write": write_all, "delete": delete_all, "verify": verify_all, "read": Reader()}


def main(directory: Path, role: str, number: int, seconds: float) -> None:
    random.seed(number)
    files = RecordFiles(LocalKVFiles(directory), SIGNATURE)
    end = time.monotonic() + seconds
    for turn in count(2):
        ROLES[role](files, number, turn)
        if time.monotonic() > end:
            say(str(turn - 1))
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
