"""Prompts of invented chunks, the chunks' KV in files, and servers over them.

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
from fusionrag_integrations.catalog import CATALOG_FILE, Catalog, StoreInfo
from fusionrag_integrations.corrections import Corrections
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.keys import chunk_id
from fusionrag_integrations.model import CausalModel
from fusionrag_integrations.prompt import encode, encode_chunk, ingest_prefix, worded_question
from fusionrag_integrations.recompute import resident
from fusionrag_integrations.serve import Server
from fusionrag_integrations.store import Budgets, FileKVStore, TieredKV, format_of
from fusionrag_integrations.types import (
    Calibration,
    Chunk,
    ChunkKV,
    ChunkRecord,
    DocumentKey,
    KVFormat,
    Prompt,
)

Tier = Literal["device", "host", "disk"]
BUDGETS: dict[Tier, Budgets] = {
    "disk": Budgets(device=0, host=0),
    "host": Budgets(device=0, host=None),
    "device": Budgets(device=None, host=None),
}
QUESTION = "Which of the places above has a bridge, and who was it that built it in the end?"


@dataclass(frozen=True, slots=True)
class InventedStore:
    """As many chunks as make a prompt. files: their KV, under `keys`, in the prompt's order."""

    model: CausalModel
    path: Path
    catalog: Catalog
    files: FileKVStore
    keys: tuple[str, ...]
    prompt: Prompt

    def tiers(self, budgets: Budgets) -> TieredKV:
        """Tiers over the files, with nothing in memory yet."""
        return TieredKV(self.files, budgets, self.model.device, partial(resident, self.model))

    def tiers_at(self, tier: Tier) -> TieredKV:
        """Tiers with all KV in this one, as far up as it goes."""
        kv = self.tiers(BUDGETS[tier])
        with kv.lease() as lease:
            for key in self.keys:
                lease.get(key, complete=True)
        return kv

    def server(self, kv: TieredKV, calibration: Calibration | None = None) -> Server:
        """A server of these chunks from `kv`."""
        prefix = ingest_prefix(self.model.tokenizer)
        prefix_ids = tuple(self.model.tokenizer(prefix, add_special_tokens=False).input_ids)
        corrections = Corrections(self.path, self.catalog)
        return Server(self.model, self.catalog, kv, prefix_ids, corrections, calibration)


@contextmanager
def invented_store(
    model: CausalModel, context: int, kv_format: KVFormat
) -> Iterator[InventedStore]:
    """Chunks for a prompt of `context` tokens, in a temporary directory.

    Raises `InvalidInputError` for a context that the model can't hold.
    """
    with TemporaryDirectory(prefix="fusionrag-bench-") as directory:
        info = StoreInfo(0, "-", model.name, "-", 16, kv_format)
        path = Path(directory)
        files = FileKVStore(path / "kv", info.record_signature, kv_format)
        with Catalog.create(path / CATALOG_FILE, info) as catalog:
            records = _records(model, context)
            catalog.replace_document(DocumentKey("invented"), "-", records)
            for record in records:
                files.put(_random_kv(model, record))
            keys = tuple(record.isolated_key for record in records)
            prompt = _prompt(model, [record.chunk.text for record in records])
            yield InventedStore(model, path, catalog, files, keys, prompt)


@contextmanager
def served_prompt(
    model: CausalModel, context: int, tier: Tier, calibration: Calibration | None
) -> Iterator[tuple[Server, Prompt]]:
    """A server over as many chunks as make a prompt of `context` tokens, and the prompt."""
    with (
        invented_store(model, context, format_of(model.dtype)) as store,
        store.tiers_at(tier) as kv,
        store.server(kv, calibration) as server,
    ):
        yield server, store.prompt


def _prompt(model: CausalModel, chunks: Sequence[str]) -> Prompt:
    return worded_question(model.tokenizer, chunks, QUESTION)


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
    shape = (model.num_layers, model.num_kv_heads, len(token_ids), model.head_dim)
    keys, values = (
        torch.randn(shape, dtype=model.dtype, device=model.device).cpu() for _ in range(2)
    )
    return ChunkKV(record.isolated_key, "isolated", token_ids, keys, values)
