"""Records whose bytes follow from key and version, and processes that write them and die.

    python -m tests.records.writer steps DIRECTORY WHAT     forks that die at each step of a call
    python -m tests.records.writer forever DIRECTORY FIRST  operations until it is killed

Imports no torch, so that a process starts at once.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from shutil import copytree
from typing import Any

from fusionrag_integrations.errors import KVMissingError
from fusionrag_integrations.store.kv.local import LocalKVFiles
from fusionrag_integrations.store.kv.record_files import RecordFiles
from fusionrag_integrations.store.kv.record_format import RecordHeader
from fusionrag_integrations.store.kv.types import KVFormat

ROOT = Path(__file__).parents[2]  # where the processes are started, so that they find this
SIGNATURE = "model-a"
KEY, OTHER, FAR = "abcdef01", "abff", "cd02"
SMALL, LARGE = (3, 2, 5, 4), (2, 2, 64, 64)
SHARED = tuple(f"a{number % 3}{number:04x}" for number in range(8))

MOMENTS = ("before", "half", "after")
CHANGING = ("open", "write", "pwrite", "writev", "fsync", "fdatasync", "close", "ftruncate")
CHANGING += ("mkdir", "makedirs", "replace", "rename", "link", "unlink", "remove", "rmdir")


def header_of(
    key: str = KEY,
    version: int = 1,
    shape: tuple[int, int, int, int] = SMALL,
    kv_format: KVFormat = "float32",
    signature: str = SIGNATURE,
) -> RecordHeader:
    """A header, without digests, whose only neighbour tells the version."""
    return RecordHeader(key, "fused", (f"{version:08x}",), signature, kv_format, shape, "F16")


def data_of(header: RecordHeader) -> bytes:
    """The bytes that the record of this key and version has."""
    seed = f"{header.key} {header.neighbours}".encode()
    return hashlib.shake_128(seed).digest(header.data_bytes)


def write(files: RecordFiles, key: str = KEY, version: int = 1, **more: Any) -> int:
    header = header_of(key, version, **more)
    return files.write(header, [memoryview(data_of(header))])


def version_of(files: RecordFiles, key: str = KEY) -> int | None:
    """Which version a whole record is of, none where there is no record."""
    try:
        with files.open(key) as record:
            data = bytearray(record.header.data_bytes)
            record.read_all(memoryview(data))
    except KVMissingError:
        return None
    assert data == data_of(record.header), f"wrong bytes in {record.header}"
    return int(record.header.neighbours[0], 16)


def file_of(directory: Path, key: str = KEY) -> Path:
    return directory / key[:2] / f"{key}.safetensors"


def operation(number: int) -> tuple[str, int | None]:
    """What `forever` does as its number-th: the key, and its version or none for a deletion."""
    return SHARED[number % len(SHARED)], None if number % 5 == 4 else number


def perform(files: RecordFiles, number: int) -> None:
    key, version = operation(number)
    if version is None:
        files.delete(key)
    else:
        write(files, key, version, shape=LARGE if number % 3 else SMALL)


def forever(directory: Path, first: int) -> None:
    """Perform operations until killed, telling the number of each that is done."""
    files = RecordFiles(LocalKVFiles(directory), SIGNATURE)
    for number in count(first):
        perform(files, number)
        say(str(number))


# What `steps` does, with the records that are there before: (versions before, the call).
CALLS: dict[str, tuple[dict[str, int], Callable[[RecordFiles], object]]] = {
    "first": ({}, lambda files: write(files, KEY, 2)),
    "next": ({OTHER: 1, FAR: 1}, lambda files: write(files, KEY, 2)),
    "replacement": ({KEY: 1, OTHER: 1}, lambda files: write(files, KEY, 2)),
    "deletion": ({KEY: 1, OTHER: 1}, lambda files: files.delete(KEY)),
}


def steps(directory: Path, what: str) -> None:
    """Perform a call again and again, each time killed one step later, and tell where.

    Each time has a directory of its own, named like what is told.
    """
    before, perform = CALLS[what]
    for key, version in before.items():
        write(RecordFiles(LocalKVFiles(directory / "before"), SIGNATURE), key, version)
    for moment in MOMENTS:
        for number in count(1):
            place = directory / f"{moment}-{number}"
            if before:
                copytree(directory / "before", place)
            child = os.fork()
            if not child:
                die_at(number, moment)
                perform(RecordFiles(LocalKVFiles(place), SIGNATURE))
                sys.exit()
            status = os.waitpid(child, 0)[1]
            say(f"{place.name} {os.waitstatus_to_exitcode(status)}")
            if not os.WIFSIGNALED(status):
                break


def die_at(number: int, moment: str) -> None:
    """Let this process die at the number-th call that changes something on the disk.

    moment: before the call, after it, or when half of a write is done, where only those count.
    """
    steps = count(1)

    def mortal(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            last = (moment != "half" or name == "write") and next(steps) == number
            if last and moment == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            if last and moment == "half":
                descriptor, content = arguments
                real(descriptor, content[: len(content) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return real(*arguments, **options)
            finally:
                if last:
                    os.kill(os.getpid(), signal.SIGKILL)

        return call

    for name in CHANGING:
        setattr(os, name, mortal(name, getattr(os, name)))


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    command, place, argument = sys.argv[1:]
    if command == "steps":
        steps(Path(place), argument)
    else:
        forever(Path(place), int(argument))
