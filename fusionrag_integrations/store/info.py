"""What a store was made with, and how much it holds."""

from __future__ import annotations

import json
from dataclasses import dataclass

from fusionrag_integrations.documents.keys import record_signature
from fusionrag_integrations.store.kv.types import KeptKV, KVFormat
from fusionrag_integrations.support.inputs import check_fields

_READ = ("dtype", "quantisation")  # parts of a model that aren't digests


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """What a store was made with, which never changes.

    model_source: the directory or hub name that the model was loaded from. kv_format: of KV
    records. salt_id: a hash of the store's salt, which is never stored itself. embedding: its name,
    for messages. probes: its vectors of a few texts, which identify it. store_id: random, to
    recognise the store's own files; no key depends on it. kv: whether KV is kept. model_parts: what
    the signature is made of, as JSON: values, or digests of them, by their names; for messages.
    """

    format_version: int
    signature: str
    model_source: str
    embedding: str
    chunk_tokens: int
    kv_format: KVFormat
    salt_id: str = ""
    probes: str = ""
    store_id: str = ""
    kv: KeptKV = "fused"
    model_parts: str = ""

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def record_signature(self) -> str:
        """The signature in every KV record of the store, on which all keys depend."""
        return record_signature(self.signature, self.kv_format, self.salt_id)

    def model_differs_in(self, wanted: StoreInfo) -> str:
        """Which parts of the wanted model are others, for a message; "" where that isn't known."""
        if not self.model_parts or not wanted.model_parts:
            return ""
        here, there = json.loads(wanted.model_parts), json.loads(self.model_parts)
        different = [name for name in here if here[name] != there.get(name)]
        if not different:  # what a configuration repeats of the weights is part of no other
            different = ["configuration"]
        named = [name for name in different if name in _READ]
        if named:  # of which the weights' bytes follow
            different = [name for name in different if name != "weights"]
        return ", ".join(
            f"{name} ({there.get(name)} there, {here[name]} here)" if name in named else name
            for name in different
        )


@dataclass(frozen=True, slots=True)
class CatalogCounts:
    """How much a store holds. tokens: of all chunks, in the model's tokens.

    captured_chunks: ad-hoc chunks, which the other counts don't include.
    """

    documents: int
    chunks: int
    fused_chunks: int
    tokens: int
    captured_chunks: int = 0
