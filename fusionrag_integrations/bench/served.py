"""Prompts of invented chunks, the chunks' KV in files, and pipelines over them.

The KV is random, since only its size counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch

from fusionrag_integrations.bench.invented import texts
from fusionrag_integrations.documents.chunk_record import ChunkRecord
from fusionrag_integrations.documents.keys import chunk_id
from fusionrag_integrations.documents.types import Chunk, DocumentKey
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.execution.executor import Executor
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.execution.placement import to_resident
from fusionrag_integrations.prompt import encode, encode_chunk, ingest_prefix, question_as_prompt
from fusionrag_integrations.prompt.messages import Prompt
from fusionrag_integrations.serving.pipeline import Pipeline
from fusionrag_integrations.store.calibration import Calibration
from fusionrag_integrations.store.catalog import Catalog
from fusionrag_integrations.store.corrections import Corrections
from fusionrag_integrations.store.info import StoreInfo
from fusionrag_integrations.store.kv.disk_budget import Budgets
from fusionrag_integrations.store.kv.local import LocalKVFiles
from fusionrag_integrations.store.kv.record_store import RecordStore, format_of
from fusionrag_integrations.store.kv.tiered_kv import TieredKV
from fusionrag_integrations.store.kv.types import ChunkKV, KVFormat
from fusionrag_integrations.store.layout import CATALOG_FILE

Tier = Literal["device", "host", "disk"]
BUDGETS: dict[Tier, Budgets] = {
    "disk": Budgets(device=0, host=0),
    "host": Budgets(device=0, host=None),
    "device": Budgets(device=None, host=None),
}
QUESTION = "Which of the places above has a bridge, and who was it that built it in the end?"


@dataclass(frozen=True, slots=True)
class InventedStore:
    """As many chunks as make a prompt. files: their KV, under `keys`, in the prompt's order.

    directory: where the files are.
    """

    model: CausalModel
    path: Path
    catalog: Catalog
    directory: LocalKVFiles
    files: RecordStore
    keys: tuple[str, ...]
    prompt: Prompt

    def tiers(self, budgets: Budgets) -> TieredKV:
        """Tiers over the files, with nothing in memory yet."""
        return TieredKV(
            self.path, self.files, budgets, self.model.device, partial(to_resident, self.model)
        )

    def tiers_at(self, tier: Tier) -> TieredKV:
        """Tiers with all KV in this one, as far up as it goes."""
        kv = self.tiers(BUDGETS[tier])
        with kv.lease() as lease:
            for key in self.keys:
                lease.get(key, complete=True)
        return kv

    def pipeline(self, kv: TieredKV, calibration: Calibration | None = None) -> Pipeline:
        """Answers prompts of these chunks from `kv`."""
        prefix = ingest_prefix(self.model.tokenizer)
        prefix_ids = tuple(self.model.tokenizer(prefix, add_special_tokens=False).input_ids)
        corrections = Corrections(self.path, self.catalog)
        executor = Executor(self.model)
        return Pipeline(executor, self.catalog, kv, prefix_ids, corrections, calibration)


@contextmanager
def invented_store(
    model: CausalModel, context: int, kv_format: KVFormat
) -> Iterator[InventedStore]:
    """Chunks for a prompt of `context` tokens, in a temporary directory.

    Raises `InvalidInputError` for a context that the model can't hold.
    """
    with TemporaryDirectory(prefix="fusionrag-bench-") as root:
        info = StoreInfo(0, "-", model.name, "-", 16, kv_format)
        path = Path(root)
        directory = LocalKVFiles(path / "kv")
        files = RecordStore(directory, info.record_signature, kv_format)
        with Catalog.create(path / CATALOG_FILE, info) as catalog:
            records = _records(model, context)
            catalog.documents.replace(DocumentKey("invented"), "-", records)
            for record in records:
                files.put(_random_kv(model, record))
            keys = tuple(record.isolated_key for record in records)
            prompt = _prompt(model, [record.chunk.text for record in records])
            yield InventedStore(model, path, catalog, directory, files, keys, prompt)


@contextmanager
def served_prompt(
    model: CausalModel, context: int, tier: Tier, calibration: Calibration | None
) -> Iterator[tuple[Pipeline, Prompt]]:
    """A pipeline over as many chunks as make a prompt of `context` tokens, and the prompt."""
    with (
        invented_store(model, context, format_of(model.dtype)) as store,
        store.tiers_at(tier) as kv,
        store.pipeline(kv, calibration) as pipeline,
    ):
        yield pipeline, store.prompt


def _prompt(model: CausalModel, chunks: Sequence[str]) -> Prompt:
    return question_as_prompt(model.tokenizer, chunks, QUESTION)


def _records(model: CausalModel, context: int) -> list[ChunkRecord]:
    """Chunks that fill a prompt of `context` tokens; the last one is cut to fit."""
    if context > model.context_window - 1:
        raise InvalidInputError(
            f"A context of {context} tokens is too long: {model.name} holds {model.context_window}."
        )
    room = context - len(encode(model.tokenizer, _prompt(model, [])).token_ids)
    if room < 1:
        raise InvalidInputError(f"A context of {context} tokens has no room for chunks.")
    records: list[ChunkRecord] = []
    for number, text in enumerate(texts(context)):
        record = _record(model, number, text)
        if len(record.encoded.token_ids) > room:
            words = text.split()
            text = " ".join(words[: len(words) * room // len(record.encoded.token_ids)])
            return [*records, _record(model, number, text)] if text else records
        records.append(record)
        room -= len(record.encoded.token_ids) + 1  # and what separates it
    return records


def _record(model: CausalModel, number: int, text: str) -> ChunkRecord:
    identity = chunk_id("invented", text, 0, scope="", title="", metadata="{}")
    chunk = Chunk(identity, "invented", number, text)
    return ChunkRecord(encode_chunk(model.tokenizer, chunk), identity)


def _random_kv(model: CausalModel, record: ChunkRecord) -> ChunkKV:
    token_ids = record.encoded.token_ids
    shape = (model.kv_layers, model.num_kv_heads, len(token_ids), model.head_dim)
    keys, values = (
        torch.randn(shape, dtype=model.dtype, device=model.device).cpu() for _ in range(2)
    )
    return ChunkKV(record.isolated_key, "isolated", token_ids, keys, values)
