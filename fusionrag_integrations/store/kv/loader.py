"""Reads records from files in the background, the first layers of all before the later ones.

All requests for a record that is being read share one load.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from queue import PriorityQueue
from time import perf_counter

import torch

from fusionrag_integrations.errors import (
    KVCorruptError,
    KVMissingError,
    KVRecordError,
    KVUnreadableError,
)
from fusionrag_integrations.store.kv.kv_record import KVRecord, LayerReadiness
from fusionrag_integrations.store.kv.record_files import RecordFile, RecordFiles
from fusionrag_integrations.support.threads import Threads

STAGES = 4  # groups of layers, read one after another
WHOLE_BYTES = 1 << 20  # smaller records are read at once
WHOLE_BYTES_OF_SHARED = 4 << 20  # for which a storage takes as long as for some small requests
THREADS = min(4, os.cpu_count() or 1)
THREADS_OF_SHARED = 16  # which wait for a network


class Load:
    """A record that is being read."""

    def __init__(self, key: str, from_shared: bool = False) -> None:
        """from_shared: whether it is read from a storage that machines share."""
        self.key = key
        self.from_shared = from_shared
        self.cancelled = False  # set by the owner, which then forgets the load
        self._record: Future[KVRecord] = Future()

    def record(self) -> KVRecord:
        """Wait for the record's header; its layers are read later.

        Raises `KVRecordError` where it can't be read, a new one for each caller.
        """
        error = self._record.exception()
        if error is not None:
            raise type(error)(str(error)) from error
        return self._record.result()

    def opened(self, record: KVRecord) -> None:
        """Report that the header is read."""
        self._record.set_result(record)

    def fail(self, error: KVRecordError) -> None:
        """Report that the header can't be read."""
        self._record.set_exception(error)


@dataclass(frozen=True, slots=True)
class LoaderEvents:
    """Callbacks to the loader's owner, from the loader's threads.

    opened: a record's header is read. read: bytes read of a load, and in how many seconds.
    complete: all layers are read. failed: a load failed. waited: the seconds that a caller waited
    for layers, from the caller's thread.
    """

    opened: Callable[[Load, KVRecord], None]
    read: Callable[[Load, int, float], None]
    complete: Callable[[Load, KVRecord], None]
    waited: Callable[[float], None]
    failed: Callable[[Load, KVRecordError], None]


class Loader:
    """Threads that read records."""

    def __init__(
        self, path: Path, files: RecordFiles, pinned: bool, is_shared: bool, events: LoaderEvents
    ) -> None:
        """path: the store's. pinned: whether to read into pinned memory, for a GPU. is_shared:
        whether files may come from a storage that machines share.
        """
        self._files = files
        self._pinned = pinned
        self._whole_bytes = WHOLE_BYTES_OF_SHARED if is_shared else WHOLE_BYTES
        self._events = events
        self._order = count()
        self._waiting: PriorityQueue[tuple[int, int, Callable[[], None]]] = PriorityQueue()
        threads = THREADS_OF_SHARED if is_shared else THREADS
        self._threads = Threads("fusionrag-load", path, threads)

    def start(self, load: Load) -> None:
        """Begin a load without waiting for it. Raises `StoreClosedError` once this is closed."""
        self._submit(0, partial(self._open, load))

    def close(self) -> None:
        """Wait for the loads that were begun, and accept no more."""
        self._threads.close()

    def _submit(self, stage: int, task: Callable[[], None]) -> None:
        """Run a task in the background, after all waiting tasks of earlier stages."""
        self._waiting.put((stage, next(self._order), task))
        self._threads.submit(lambda: self._waiting.get()[2]())

    def _open(self, load: Load) -> None:
        def read_record(file: RecordFile) -> None:
            started = perf_counter()
            header = file.header
            small = header.data_bytes < self._whole_bytes
            data = torch.empty(header.data_bytes, dtype=torch.uint8, pin_memory=self._pinned)
            view = data.numpy().data
            groups = [] if small else _groups(header.layers)
            if small:
                file.read_all(view)
                self._events.read(load, header.data_bytes, perf_counter() - started)
            else:
                file.read_tokens(view)
            readiness = LayerReadiness(groups, self._events.waited)
            record = KVRecord(header, data, readiness)
            self._events.opened(load, record)
            for stage, group in enumerate(groups, start=1):
                read = partial(self._read, load, file, group, record, readiness)
                self._submit(stage, read)
            load.opened(record)
            if small:
                self._events.complete(load, record)

        self._with_file(load, read_record, load.fail)

    def _read(
        self,
        load: Load,
        known: RecordFile,
        group: range,
        record: KVRecord,
        readiness: LayerReadiness,
    ) -> None:
        header = record.header

        def read_group(file: RecordFile) -> None:
            if file.header != header:
                raise KVCorruptError(f"KV {load.key} was replaced while it was being read.")
            started = perf_counter()
            file.read_layers(record.data, group)
            nbytes = header.data_bytes * len(group) // len(header.layers)
            self._events.read(load, nbytes, perf_counter() - started)
            readiness.mark_ready(group)
            if record.ready():
                self._events.complete(load, record)

        self._with_file(load, read_group, readiness.fail, known)

    def _with_file(
        self,
        load: Load,
        use: Callable[[RecordFile], None],
        fail: Callable[[KVRecordError], None],
        known: RecordFile | None = None,
    ) -> None:
        """Call `use` with a load's file. On any exception, `fail` wakes those who wait for it."""
        if load.cancelled:
            fail(KVMissingError(f"Reading KV {load.key} was cancelled."))
            return
        failed: KVRecordError | None = KVUnreadableError(f"Reading KV {load.key} was interrupted.")
        try:
            # Opened for each task, since a long queue of loads would hold too many open files.
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
