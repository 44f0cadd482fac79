"""Tiny random models of every supported family, with the shapes that are easy to get wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Glm4Config,
    Glm4ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCABULARY = 120
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,  # large enough that attention is far from uniform
}


def heads(query: int, key_value: int, **more: Any) -> dict[str, Any]:
    return {"num_attention_heads": query, "num_key_value_heads": key_value, **more}


def rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0, **more}}


LLAMA3 = rope(
    "llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=64)
GEMMA_ROPE = {
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 1_000_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    }
}

Factory = Callable[[], PreTrainedModel]

FACTORIES: dict[str, Factory] = {
    "llama_gqa2": lambda: LlamaForCausalLM(LlamaConfig(**COMMON, **heads(4, 2))),
    "llama_mha_tied": lambda: LlamaForCausalLM(
        LlamaConfig(**COMMON, **heads(4, 4), tie_word_embeddings=True)
    ),
    "llama3_scaling": lambda: LlamaForCausalLM(LlamaConfig(**COMMON, **heads(4, 1), **LLAMA3)),
    "llama_linear_scaling": lambda: LlamaForCausalLM(
        LlamaConfig(**COMMON, **heads(4, 2), **rope("linear", factor=2.0))
    ),
    "qwen2": lambda: Qwen2ForCausalLM(
        Qwen2Config(**COMMON, **heads(4, 2), tie_word_embeddings=True)
    ),
    "qwen2_yarn": lambda: Qwen2ForCausalLM(Qwen2Config(**COMMON, **heads(4, 1), **YARN)),
    "qwen2_window": lambda: Qwen2ForCausalLM(
        Qwen2Config(
            **COMMON,
            **heads(4, 2),
            use_sliding_window=True,
            sliding_window=24,
            max_window_layers=1,
        )
    ),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**COMMON, **heads(4, 2, head_dim=32))),
    "mistral": lambda: MistralForCausalLM(
        MistralConfig(**COMMON, **heads(4, 1), sliding_window=None)
    ),
    "mistral_window": lambda: MistralForCausalLM(
        MistralConfig(**COMMON, **heads(4, 2), sliding_window=24)
    ),
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(
            **COMMON,
            **heads(4, 2, head_dim=32),
            **GEMMA_ROPE,
            sliding_window=24,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        )
    ),
    "phi3_partial": lambda: Phi3ForCausalLM(
        Phi3Config(
            **COMMON,
            **heads(4, 2),
            **rope("default", partial_rotary_factor=0.5),
            sliding_window=None,
        )
    ),
    "phi3_window": lambda: Phi3ForCausalLM(Phi3Config(**COMMON, **heads(4, 4), sliding_window=24)),
    "glm4": lambda: Glm4ForCausalLM(
        Glm4Config(
            **COMMON,
            **heads(4, 1, head_dim=32),
            **rope("default", partial_rotary_factor=0.5),
        )
    ),
}


def build(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The named model with weights from a fixed seed; biases and norms are random too."""
    torch.manual_seed(0)
    model = FACTORIES[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.to(dtype).eval()
