"""Models of well-known shapes with random weights: timing needs the shape, not the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
)

from fusionrag_integrations.bench.invented import make_tokenizer
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.execution.devices import torch_device, torch_dtype
from fusionrag_integrations.execution.hf.model import CausalModel


def _sizes(
    hidden: int, mlp: int, layers: int, heads: int, kv_heads: int, vocabulary: int
) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": 131_072,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    }


# Sizes as their makers publish them.
SHAPES: dict[str, Callable[[], PretrainedConfig]] = {
    "qwen2.5-0.5b": lambda: Qwen2Config(
        **_sizes(896, 4864, 24, 14, 2, 151_936), tie_word_embeddings=True
    ),
    "qwen2.5-7b": lambda: Qwen2Config(**_sizes(3584, 18_944, 28, 28, 4, 152_064)),
    "qwen2.5-14b": lambda: Qwen2Config(**_sizes(5120, 13_824, 48, 40, 8, 152_064)),
    "mistral-7b": lambda: MistralConfig(
        **_sizes(4096, 14_336, 32, 32, 8, 32_768), sliding_window=None
    ),
    "llama-3.1-8b": lambda: LlamaConfig(**_sizes(4096, 14_336, 32, 32, 8, 128_256)),
}


def model_of_shape(name: str, device: str, dtype: str) -> CausalModel:
    """A model of a known shape, with a tokenizer for invented texts.

    device, dtype: as `CausalModel.load` takes them; dtype "auto" is bfloat16 on CUDA. Raises
    `InvalidInputError` for an unknown name.
    """
    if name not in SHAPES:
        raise InvalidInputError(f"Unknown shape {name!r}; known are {', '.join(SHAPES)}.")
    target = torch_device(device)
    with target:
        hf = AutoModelForCausalLM.from_config(SHAPES[name](), dtype=random_dtype(dtype, target))
    return CausalModel(hf, make_tokenizer(), name)


def random_dtype(name: str, device: torch.device) -> torch.dtype:
    """As `torch_dtype`, where there is no checkpoint to have its own: "auto" is bf16 on CUDA."""
    chosen = torch_dtype(name, device)
    return torch.bfloat16 if isinstance(chosen, str) else chosen
