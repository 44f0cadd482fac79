"""An ingest by several workers, simulated.

A worker takes a chunk, prefills it alone and writes its KV; once that of all its neighbours is
written, any worker reads theirs, fuses the chunk and writes again; meanwhile it computes nothing.
All reads share the storage's speed, and so do all writes. What is written is committed by the
driver, one record after the other.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count

import numpy as np

from benchmarks.scale.replica import Link
from fusionrag_integrations.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class IngestWork:
    """isolated_s, fused_s: of a worker's device for a chunk. driver_s: of the driver's, for both.

    record_bytes: of a chunk's KV, once for each kind. read_records: neighbours' records that are
    read from storage for a chunk. worker_bytes_s: between a worker and storage; shared_bytes_s: of
    storage for all workers, each way.
    """

    isolated_s: float
    fused_s: float
    driver_s: float
    record_bytes: float
    read_records: float
    worker_bytes_s: float
    shared_bytes_s: float
    neighbours: int = 10

    @property
    def worker_s(self) -> float:
        """Seconds of a worker for a chunk, with what it waits for storage."""
        moved = (self.read_records + 2) * self.record_bytes
        return self.isolated_s + self.fused_s + moved / self.worker_bytes_s


@dataclass(frozen=True, slots=True)
class IngestRun:
    """seconds: until the last commit. busy: the share of the workers' time that they computed."""

    chunks: int
    workers: int
    seconds: float
    busy: float


def ingest(work: IngestWork, chunks: int, workers: int, seed: int = 0) -> IngestRun:
    """Ingest so many chunks; the same for the same arguments.

    Neighbours are the chunk before and others drawn among the hundred around it.
    """
    if chunks < 1 or workers < 1:
        raise InvalidInputError(f"There are {chunks} chunks and {workers} workers; give 1 or more.")
    return _Ingest(work, _neighbours(work.neighbours, chunks, seed), workers).run()


def _neighbours(most: int, chunks: int, seed: int) -> list[set[int]]:
    draw = np.random.default_rng(seed)
    found = []
    for chunk in range(chunks):
        near = draw.integers(max(0, chunk - 50), min(chunks, chunk + 50), most)
        found.append({int(other) for other in [chunk - 1, *near][:most]} - {chunk, -1})
    return found


class _Ingest:
    def __init__(self, work: IngestWork, neighbours: list[set[int]], workers: int) -> None:
        self._work = work
        self._workers = workers
        self._reads, self._writes = Link(work.shared_bytes_s), Link(work.shared_bytes_s)
        self._driver = Link(1.0)  # its "bytes" are seconds
        self._waits_for = [len(others) + 1 for others in neighbours]  # itself, too
        self._needed_by: list[list[int]] = [[chunk] for chunk in range(len(neighbours))]
        for chunk, others in enumerate(neighbours):
            for other in others:
                self._needed_by[other].append(chunk)
        self._isolated = deque(range(len(neighbours)))
        self._fusible: deque[int] = deque()
        self._events: list[tuple[float, int, str, bool, int]] = []
        self._numbers = count()

    def run(self) -> IngestRun:
        idle, now = self._workers, 0.0
        while True:
            while idle and (self._isolated or self._fusible):
                self._begin(now)
                idle -= 1
            if not self._events:
                break
            now, _, event, fused, chunk = heappop(self._events)
            if event == "read":
                self._plan(now + self._work.fused_s, "computed", fused, chunk)
            elif event == "computed":
                written = self._sent(self._writes, now, self._work.record_bytes)
                self._plan(written, "written", fused, chunk)
            else:
                idle += 1
                self._driver.send(now, self._work.driver_s / 2)
                if not fused:
                    self._written(chunk)
        chunks, work = len(self._waits_for), self._work
        seconds = self._driver.free_at
        computed = chunks * (work.isolated_s + work.fused_s)
        return IngestRun(chunks, self._workers, seconds, computed / (seconds * self._workers))

    def _begin(self, now: float) -> None:
        if self._isolated:
            chunk = self._isolated.popleft()
            self._plan(now + self._work.isolated_s, "computed", False, chunk)
        else:
            chunk = self._fusible.popleft()
            nbytes = self._work.read_records * self._work.record_bytes
            read = self._sent(self._reads, now, nbytes)
            self._plan(read, "read", True, chunk)

    def _written(self, chunk: int) -> None:
        for other in self._needed_by[chunk]:
            self._waits_for[other] -= 1
            if not self._waits_for[other]:
                self._fusible.append(other)

    def _sent(self, link: Link, now: float, nbytes: float) -> float:
        """When so many bytes have passed a worker's own link and all workers' shared one."""
        return max(now + nbytes / self._work.worker_bytes_s, link.send(now, nbytes))

    def _plan(self, at: float, event: str, fused: bool, chunk: int) -> None:
        heappush(self._events, (at, next(self._numbers), event, fused, chunk))
