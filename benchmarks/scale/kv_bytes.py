"""Bytes of KV: what a record of one chunk takes on disk, by model and format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from transformers import LlamaConfig, PretrainedConfig

from fusionrag_integrations.bench.shapes import SHAPES
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.store.kv.record_format import RecordHeader
from fusionrag_integrations.store.kv.types import KVFormat

CHUNK_TOKENS = 256
FORMATS = ("bfloat16", "int8", "int4")

# Llama 2's heads each have keys of their own, as its makers publish it.
MODELS: Mapping[str, Callable[[], PretrainedConfig]] = {
    name: SHAPES[name] for name in ("qwen2.5-0.5b", "qwen2.5-7b", "llama-3.1-8b", "qwen2.5-14b")
} | {
    "llama-2-7b": lambda: LlamaConfig(
        hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32
    )
}


def bytes_a_token(model: str, kv_format: str, chunk_tokens: int = CHUNK_TOKENS) -> float:
    """Of a record's whole file, header included, over its tokens."""
    return record_bytes(model, kv_format, chunk_tokens) / chunk_tokens


def record_bytes(model: str, kv_format: str, chunk_tokens: int = CHUNK_TOKENS) -> int:
    """Bytes of a fused record's file with ten neighbours.

    Raises `InvalidInputError` for a model that isn't among `MODELS`.
    """
    if model not in MODELS:
        raise InvalidInputError(f"Unknown shape {model!r}; known are {', '.join(MODELS)}.")
    config: Any = MODELS[model]()
    size = config.hidden_size // config.num_attention_heads
    key = "0" * 64
    header = RecordHeader(
        key=key,
        kind="fused",
        neighbours=(key,) * 10,
        signature=key,
        kv_format=cast(KVFormat, kv_format),
        shape=(config.num_hidden_layers, config.num_key_value_heads, chunk_tokens, size),
        half="BF16",
    )
    return header.file_bytes
