"""How fast KV records are read from files: those of a context, and small ones among many."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from ctypes import CDLL
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from random import Random
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, Literal

from fusionrag_integrations.bench.clock import quartiles
from fusionrag_integrations.store.kv.local import LocalKVFiles
from fusionrag_integrations.store.kv.record_format import RecordHeader, header_bytes, with_digests
from fusionrag_integrations.store.kv.record_store import RecordStore

Progress = Callable[[int, int], None]
"""Called with the steps done and the steps in all."""
Files = Literal["cached", "cold"]
Memory = Literal["new", "reused"]

KINDS: tuple[tuple[Files, Memory], ...] = (
    ("cached", "new"),
    ("cached", "reused"),
    ("cold", "reused"),
)
ROUNDS = 4  # of reads for each that is asked for: they take little time, and vary
DROPPED = 0.5  # cold reads at most so fast as cached ones show that files were cold
LOOKUPS = 10_000
SMALL = (2, 1, 4, 8)  # [L, Hkv, T, D] of the records that are looked up
SIGNATURE = "bench"


@dataclass(frozen=True, slots=True)
class ReadSpeed:
    """Plain reads of files, and of whole records with their digests checked, in turns.

    Megabytes (1e6) a second, medians and quartiles over rounds. ratio: verified over plain, of each
    round. files: "cached" by the system or "cold". memory: "new", as where the first records are
    loaded and stay, so that the system has to find a page for each; or "reused", where each is let
    go before the next.
    """

    files: Files
    memory: Memory
    plain_mb_s: float
    plain_spread: tuple[float, float]
    verified_mb_s: float
    verified_spread: tuple[float, float]
    ratio: float
    ratio_spread: tuple[float, float]


def measure_load(
    store: RecordStore, paths: Sequence[Path], repeat: int, progress: Progress
) -> dict[str, Any]:
    """Reads of all records of a store, one after another, in `ROUNDS` times `repeat` rounds.

    paths: the records' files. dropped: whether the system let go of files when it was asked to, as
    the speeds say.
    """
    seconds: dict[tuple[Files, Memory], list[tuple[float, float]]] = {k: [] for k in KINDS}
    rounds = 1 + ROUNDS * repeat  # the first one warms up
    total = rounds * len(KINDS)
    for turn in range(rounds):
        for number, (files, memory) in enumerate(KINDS):
            progress(turn * len(KINDS) + number, total)
            pair = _plain_and_verified(store, paths, files, memory, plain_first=turn % 2 == 0)
            if turn:
                seconds[files, memory].append(pair)
    progress(total, total)
    nbytes = store.size_bytes()
    rows = [_speed(files, memory, nbytes, seconds[files, memory]) for files, memory in KINDS]
    _, cached, cold = rows
    return {
        "records": len(paths),
        "bytes": nbytes,
        "dropped": cold.plain_mb_s <= DROPPED * cached.plain_mb_s,
        "rows": [asdict(row) for row in rows],
    }


def drop_cached(paths: Sequence[Path]) -> None:
    """Ask the system to let go of what it holds of these files; it may decline."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # only what is on the disk can be let go of
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _plain_and_verified(
    store: RecordStore, paths: Sequence[Path], files: Files, memory: Memory, plain_first: bool
) -> tuple[float, float]:
    """Seconds of plain reads of all files, and of verified ones, file by file in turns."""
    apart = len(paths) // 2  # no file is read while the processor still caches what it holds
    ways: list[Callable[[int], object]] = [
        lambda number: paths[number].read_bytes(),
        lambda number: store.get(paths[number].stem),
    ]
    seconds = [0.0, 0.0]
    kept: list[object] = []
    if memory == "new":
        _give_back_memory()
    for turn in range(2 * len(paths)):
        way = (turn + (not plain_first)) % 2
        number = (turn // 2 + way * apart) % len(paths)
        if files == "cold":
            drop_cached([paths[number]])
        started = perf_counter()
        content = ways[way](number)
        seconds[way] += perf_counter() - started
        if memory == "new":
            kept.append(content)
    return seconds[0], seconds[1]


def _give_back_memory() -> None:
    """Let the C library give back what nothing uses, where it can."""
    trim = getattr(CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _speed(
    files: Files, memory: Memory, nbytes: int, seconds: Sequence[tuple[float, float]]
) -> ReadSpeed:
    plain, verified = (
        [nbytes / 1e6 / taken for taken in way] for way in zip(*seconds, strict=True)
    )
    ratios = [mine / other for mine, other in zip(verified, plain, strict=True)]
    return ReadSpeed(
        files,
        memory,
        median(plain),
        quartiles(plain),
        median(verified),
        quartiles(verified),
        median(ratios),
        quartiles(ratios),
    )


def measure_lookups(records: int, lookups: int, progress: Progress) -> dict[str, Any]:
    """Milliseconds that getting one small record among many takes, in no order.

    plain: those of reading a file and no more, in turns with them.
    """
    draw = Random(0)
    keys = [f"{draw.getrandbits(256):064x}" for _ in range(records)]
    with TemporaryDirectory(prefix="fusionrag-lookups-") as directory:
        files = LocalKVFiles(Path(directory))
        store = RecordStore(files, SIGNATURE, "float32")
        paths = [files.path_of(key) for key in keys]
        for done, path in enumerate(paths, start=1):
            _write_small(path, draw)
            progress(done, records)
        times: list[float] = []
        plain: list[float] = []
        for _ in range(lookups):
            times.append(_ms(partial(store.get, draw.choice(keys))))
            plain.append(_ms(draw.choice(paths).read_bytes))
    got, read = quantiles(times, n=100), quantiles(plain, n=100)
    return {
        "records": records,
        "lookups": lookups,
        "p50_ms": got[49],
        "p99_ms": got[98],
        "plain_p50_ms": read[49],
        "plain_p99_ms": read[98],
    }


def _ms(work: Callable[[], object]) -> float:
    started = perf_counter()
    work()
    return 1e3 * (perf_counter() - started)


def _write_small(path: Path, draw: Random) -> None:
    """A record of random bytes, as a store writes it; but nothing waits for the disk."""
    key = path.stem
    header = RecordHeader(key, "isolated", (), SIGNATURE, "float32", SMALL, "F16")
    data = draw.randbytes(header.data_bytes)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(header_bytes(with_digests(header, memoryview(data))) + data)
