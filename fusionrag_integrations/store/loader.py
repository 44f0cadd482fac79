"""Reads records from files in the background, the layers that are needed first before the others.

Everybody who asks for a record while it is on its way shares one read.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from itertools import count
from queue import PriorityQueue
from time import perf_counter

import torch

from fusionrag_integrations.errors import (
    KVCorruptError,
    KVMissingError,
    KVRecordError,
    KVUnreadableError,
)
from fusionrag_integrations.records import RecordFile, RecordFiles
from fusionrag_integrations.store.stored import Arrivals, StoredKV
from fusionrag_integrations.threads import Threads

STAGES = 4  # groups of layers that are read one after another
WHOLE_BYTES = 1 << 20  # a smaller record is read at once
THREADS = min(4, os.cpu_count() or 1)


class Load:
    """A record on its way."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.cancelled = False  # whoever sets it has let go of the load
        self._record: Future[StoredKV] = Future()

    def record(self) -> StoredKV:
        """The record, once its header is read; its layers come later.

        Raises what hindered that: a new error for everybody who asks.
        """
        error = self._record.exception()
        if error is not None:
            raise type(error)(str(error)) from error
        return self._record.result()

    def come(self, record: StoredKV) -> None:
        """The header is read."""
        self._record.set_result(record)

    def fail(self, error: KVRecordError) -> None:
        """It can't be read."""
        self._record.set_exception(error)


@dataclass(frozen=True, slots=True)
class LoaderEvents:
    """What the loader tells its owner, from its own threads.

    opened: a record's header is read. read: some bytes are, and the seconds that took. waited:
    the seconds that somebody waited for layers. failed: a load came to nothing.
    """

    opened: Callable[[Load, StoredKV], None]
    read: Callable[[int, float], None]
    waited: Callable[[float], None]
    failed: Callable[[Load, KVRecordError], None]


class Loader:
    """Threads that read records."""

    def __init__(self, files: RecordFiles, pinned: bool, events: LoaderEvents) -> None:
        """pinned: whether records lie in pinned memory, from which a GPU reads by itself."""
        self._files = files
        self._pinned = pinned
        self._events = events
        self._order = count()
        self._waiting: PriorityQueue[tuple[int, int, Callable[[], None]]] = PriorityQueue()
        self._threads = Threads("fusionrag-load", files.directory.parent, THREADS)

    def start(self, load: Load) -> None:
        """Begin a load; returns at once. Raises `StoreClosedError` once this is closed."""
        self._submit(0, partial(self._open, load))

    def close(self) -> None:
        """Let the reads that were asked for end; no more can be."""
        self._threads.close()

    def _submit(self, stage: int, task: Callable[[], None]) -> None:
        """Run a task after those of earlier stages, whichever was asked for first."""
        self._waiting.put((stage, next(self._order), task))
        self._threads.submit(lambda: self._waiting.get()[2]())

    def _open(self, load: Load) -> None:
        def whole(file: RecordFile) -> None:
            started = perf_counter()
            header = file.header
            small = header.data_bytes < WHOLE_BYTES
            data = torch.empty(header.data_bytes, dtype=torch.uint8, pin_memory=self._pinned)
            view = data.numpy().data
            groups = [] if small else _groups(header.layers)
            if small:
                file.read_all(view)
                self._events.read(header.data_bytes, perf_counter() - started)
            else:
                file.read_tokens(view)
            arrivals = Arrivals(groups, self._events.waited)
            record = StoredKV(header, data, arrivals)
            self._events.opened(load, record)
            for stage, group in enumerate(groups, start=1):
                self._submit(stage, partial(self._read, load, file, view, group, arrivals))
            load.come(record)

        self._with_file(load, whole, load.fail)

    def _read(
        self, load: Load, known: RecordFile, view: memoryview, group: range, arrivals: Arrivals
    ) -> None:
        header = known.header

        def layers(file: RecordFile) -> None:
            if file.header != header:
                raise KVCorruptError(f"KV {load.key} was replaced while it was being read.")
            started = perf_counter()
            file.read_layers(view, group)
            self._events.read(
                header.data_bytes * len(group) // len(header.layers), perf_counter() - started
            )
            arrivals.come(group)

        self._with_file(load, layers, arrivals.fail, known)

    def _with_file(
        self,
        load: Load,
        use: Callable[[RecordFile], None],
        fail: Callable[[KVRecordError], None],
        known: RecordFile | None = None,
    ) -> None:
        """Use a load's file. Whatever happens, who waits for the load hears of it."""
        if load.cancelled:
            fail(KVMissingError(f"Nobody wanted KV {load.key} any more."))
            return
        failed: KVRecordError | None = KVUnreadableError(f"Reading KV {load.key} broke off.")
        try:
            # Opened for each task: a long queue of loads would hold too many open files.
            with self._files.open(load.key, known) as file:
                use(file)
            failed = None
        except KVRecordError as error:
            failed = error
        finally:
            if failed is not None:
                self._events.failed(load, failed)
                fail(failed)


def _groups(layers: range) -> list[range]:
    size = -(-len(layers) // STAGES)
    return [layers[start : start + size] for start in layers[::size]]
