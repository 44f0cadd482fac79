"""A worker's model, and the store's KV as it reads and writes it: by keys, without a catalog."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fusionrag_integrations.errors import StoreError, StoreMismatchError
from fusionrag_integrations.execution.executor import Executor
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.execution.placement import to_resident
from fusionrag_integrations.ingest.chunk_prefill import ChunkPrefill
from fusionrag_integrations.ingest.model_facts import ModelFacts
from fusionrag_integrations.store.info import StoreInfo
from fusionrag_integrations.store.kv.base import KVFiles
from fusionrag_integrations.store.kv.copied import CopiedKVFiles
from fusionrag_integrations.store.kv.disk_budget import Budgets, free_for_copies
from fusionrag_integrations.store.kv.kv_record import KVRecord
from fusionrag_integrations.store.kv.local import LocalKVFiles
from fusionrag_integrations.store.kv.record_store import RecordStore
from fusionrag_integrations.store.kv.shared import SharedKVFiles
from fusionrag_integrations.store.kv.tiered_kv import TieredKV
from fusionrag_integrations.store.kv.types import ChunkKV
from fusionrag_integrations.store.layout import CATALOG_FILE, KV_DIRECTORY
from fusionrag_integrations.store.objects.opening import is_url, open_objects
from fusionrag_integrations.store.published.cache import held_directory
from fusionrag_integrations.support.threads import Closable


@dataclass(frozen=True, slots=True)
class ModelPlace:
    """Where a worker finds the model, and the threads that it has for it."""

    model: str | Path
    threads: int

    def load(self) -> CausalModel:
        """Raises as `CausalModel.load` does."""
        import torch

        torch.set_num_threads(self.threads)
        return CausalModel.load(self.model)


@dataclass(frozen=True, slots=True)
class KVPlace:
    """The store whose KV workers compute. store: its directory, or URL. workers: how many may share
    a machine's disk.
    """

    store: str | Path
    info: StoreInfo
    workers: int


class ModelKV(Closable):
    """The model and the store's KV. prefill: computes it. kv: where it goes."""

    def __init__(self, model: ModelPlace, place: KVPlace) -> None:
        """Raises `StoreMismatchError` where this machine's model is another one, `StoreError` where
        the store can't be seen from here, and as `CausalModel.load` does.
        """
        loaded = model.load()
        facts = ModelFacts.of(loaded)
        if facts.signature != place.info.signature:
            raise StoreMismatchError(
                f"On {socket.gethostname()}, {str(model.model)!r} is another model (signature "
                f"{facts.signature}) than the one that the store at {place.store} is for "
                f"(signature {place.info.signature}). All workers need the same files, versions "
                "and kind of device."
            )
        with ExitStack() as opened:
            self.kv = _opened(loaded, place, opened)
            executor = Executor(loaded)
            self.prefill = ChunkPrefill(executor, self.kv, facts.prefix_ids, facts.separator_ids)
            self._opened = opened.pop_all()

    def close(self) -> None:
        """Release the store's files. May be called again."""
        self._opened.close()


class CountedKV:
    """`KVRecords` that counts the bytes of what it writes."""

    def __init__(self, kv: TieredKV, records: RecordStore) -> None:
        self._kv = kv
        self._records = records
        self.written = 0

    def get(self, key: str) -> KVRecord:
        return self._kv.get(key)

    def put(self, record: ChunkKV) -> bool:
        is_stored = self._kv.put(record)
        if is_stored:
            self.written += self._records.file_bytes(record)
        return is_stored

    def existing(self, keys: list[str]) -> set[str]:
        """Those of these keys that there are records of."""
        return self._kv.existing(keys)


def _opened(model: CausalModel, place: KVPlace, opened: ExitStack) -> CountedKV:
    info, budgets = place.info, Budgets()
    copies: RecordStore | None = None
    files: KVFiles
    if is_url(place.store):
        objects = open_objects(place.store)
        opened.callback(objects.close)
        path = opened.enter_context(held_directory(place.store))
        local = LocalKVFiles(path / KV_DIRECTORY)
        copies = RecordStore(local, info.record_signature, info.kv_format)
        budgets = Budgets(disk=free_for_copies(path, copies) // place.workers)
        files = CopiedKVFiles(local, SharedKVFiles(objects))
        records = RecordStore(files, info.record_signature, info.kv_format)
    else:
        path = Path(place.store)
        if not (path / CATALOG_FILE).exists():
            raise StoreError(
                f"The store's directory {path} isn't on {socket.gethostname()}, where a worker "
                "runs. Give a directory that all machines share, or a URL."
            )
        files = LocalKVFiles(path / KV_DIRECTORY)
        records = RecordStore(files, info.record_signature, info.kv_format)
    kv = TieredKV(path, records, budgets, model.device, partial(to_resident, model), copies)
    opened.enter_context(kv)
    return CountedKV(kv, records)
