"""What an ingest needs to know of a model, without its weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Self

from fusionrag_integrations.documents.chunking import Chunker
from fusionrag_integrations.documents.keys import salt_id
from fusionrag_integrations.execution.hf.plain_model import PlainModel
from fusionrag_integrations.prompt import SEPARATOR, ingest_prefix, ingest_surroundings
from fusionrag_integrations.store.info import StoreInfo
from fusionrag_integrations.store.kv.record_format import FORMAT_VERSION
from fusionrag_integrations.store.kv.record_store import format_of
from fusionrag_integrations.store.kv.types import KeptKV, KVFormat

DEFAULT_CHUNK_TOKENS = 256


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model's identity, and what shapes its chunks.

    signature, parts: as `PlainModel.identity` has them, the latter as JSON. kv_format: holds its KV
    unchanged. prefix_ids: token ids before every chunk. separator_ids: between a chunk and its
    neighbours.
    """

    source: str
    signature: str
    parts: str
    kv_format: KVFormat
    context_window: int
    tokenizer: Any
    prefix_ids: tuple[int, ...]
    separator_ids: tuple[int, ...]

    @classmethod
    def of(cls, model: PlainModel) -> Self:
        tokenizer = model.tokenizer
        identity = model.identity(ingest_surroundings(tokenizer))
        return cls(
            source=model.source,
            signature=identity.signature,
            parts=json.dumps(dict(identity.parts)),
            kv_format=format_of(model.dtype),
            context_window=model.context_window,
            tokenizer=tokenizer,
            prefix_ids=_encoded(tokenizer, ingest_prefix(tokenizer)),
            separator_ids=_encoded(tokenizer, SEPARATOR),
        )

    def store_info(
        self,
        embedding: str,
        chunk_tokens: int | None,
        kv_format: KVFormat | None,
        salt: str,
        kept: KeptKV,
    ) -> StoreInfo:
        """What a new store of this model is made with. embedding: its name."""
        chunker = Chunker(DEFAULT_CHUNK_TOKENS if chunk_tokens is None else chunk_tokens)
        return StoreInfo(
            format_version=FORMAT_VERSION,
            signature=self.signature,
            model_source=self.source,
            embedding=embedding,
            chunk_tokens=chunker.chunk_tokens,
            kv_format=kv_format or self.kv_format,
            salt_id=salt_id(salt),
            kv=kept,
            model_parts=self.parts,
        )


def _encoded(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False).input_ids)
