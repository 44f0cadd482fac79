"""Tiny random models of every supported family, with the shapes that are easy to get wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
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

Factory = Callable[..., PreTrainedModel]


def of(kind: str, **more: Any) -> Factory:
    """A model of this type; `more` of its configuration than is common to all."""
    return lambda **changes: AutoModelForCausalLM.from_config(
        AutoConfig.for_model(kind, **COMMON | more | changes)
    )


MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
WINDOW = {"sliding_window": 24}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 48}
# YaRN makes keys larger, and float32's rounding of angles with them.
SMALLER = {"initializer_range": 0.15}
HALF_ROTATED = rope("default", partial_rotary_factor=0.5)

SLIDING, FULL = MIXED[:2]
GEMMA4 = {**WINDOW, "global_head_dim": 32}  # of layers without windows
WITHOUT_EMBEDDINGS = {"hidden_size_per_layer_input": 0}  # of each layer's own
LATENT = {"kv_lora_rank": 24, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12}
ROUTED = {**EXPERTS, "n_routed_experts": 4, "first_k_dense_replace": 1}

FACTORIES: dict[str, Factory] = {
    "llama_gqa2": of("llama", **heads(4, 2)),
    "llama_mha_tied": of("llama", **heads(4, 4), tie_word_embeddings=True),
    "llama3_scaling": of("llama", **heads(4, 1), **LLAMA3),
    "llama_linear_scaling": of("llama", **heads(4, 2), **rope("linear", factor=2.0)),
    "qwen2": of("qwen2", **heads(4, 2), tie_word_embeddings=True),
    "qwen2_yarn": of("qwen2", **heads(4, 1), **YARN),
    "qwen2_window": of(
        "qwen2", **heads(4, 2), **WINDOW, use_sliding_window=True, max_window_layers=1
    ),
    "qwen2_moe": of("qwen2_moe", **heads(4, 2), **EXPERTS, num_experts=4),
    "qwen3": of("qwen3", **heads(4, 2, head_dim=32)),
    "qwen3_moe": of("qwen3_moe", **heads(4, 2, head_dim=32), **EXPERTS, num_experts=4),
    "mistral": of("mistral", **heads(4, 1), sliding_window=None),
    "mistral_window": of("mistral", **heads(4, 2), **WINDOW),
    "ministral": of(
        "ministral", **heads(4, 2, head_dim=16), **rope("default"), **WINDOW, layer_types=MIXED
    ),
    "ministral3": of(
        "ministral3",
        **heads(4, 2, head_dim=32),
        **SMALLER,
        **rope(
            "yarn",
            factor=4.0,
            original_max_position_embeddings=400,  # queries are scaled beyond it
            llama_4_scaling_beta=0.1,
        ),
    ),
    "mixtral": of("mixtral", **heads(4, 2), num_local_experts=4, num_experts_per_tok=2),
    "gemma2": of(
        "gemma2",
        **heads(4, 2, head_dim=32),
        **WINDOW,
        layer_types=MIXED,
        attn_logit_softcapping=2.0,
    ),
    "gemma3": of(
        "gemma3_text",
        **heads(4, 2, head_dim=32),
        **GEMMA_ROPE,
        **WINDOW,
        layer_types=MIXED,
    ),
    "gemma4": of(
        "gemma4_text",
        **heads(4, 4, head_dim=16),
        **GEMMA4,
        **WITHOUT_EMBEDDINGS,
        layer_types=[SLIDING, SLIDING, FULL],
        num_global_key_value_heads=2,
        attention_k_eq_v=True,
    ),
    "gemma4_experts": of(
        "gemma4_text",
        **heads(4, 2, head_dim=16),
        **GEMMA4,
        **WITHOUT_EMBEDDINGS,
        layer_types=[SLIDING, SLIDING, FULL],
        enable_moe_block=True,
        num_experts=4,
        top_k_experts=2,
        moe_intermediate_size=48,
    ),
    "gemma4_shared": of(
        "gemma4_text",
        **heads(4, 1, head_dim=16),
        **GEMMA4,
        num_hidden_layers=5,
        layer_types=[SLIDING, FULL, SLIDING, SLIDING, FULL],
        num_kv_shared_layers=3,
        vocab_size_per_layer_input=VOCABULARY,
        hidden_size_per_layer_input=16,
        use_double_wide_mlp=True,
    ),
    "phi3_partial": of("phi3", **heads(4, 2), **HALF_ROTATED, sliding_window=None),
    "phi3_window": of("phi3", **heads(4, 4), **WINDOW),
    "glm4": of("glm4", **heads(4, 1, head_dim=32), **HALF_ROTATED),
    "glm4_moe": of(
        "glm4_moe",
        **heads(4, 2, head_dim=32),
        **HALF_ROTATED,
        **EXPERTS,
        n_routed_experts=4,
        first_k_dense_replace=1,
    ),
    "gpt_oss": of(
        "gpt_oss",
        **heads(4, 2, head_dim=32),
        **SMALLER,
        **YARN,
        **WINDOW,
        layer_types=MIXED,
        num_local_experts=4,
        num_experts_per_tok=2,
    ),
    "olmo2": of("olmo2", **heads(4, 2)),
    "olmo3": of("olmo3", **heads(4, 2), **WINDOW, layer_types=MIXED),
    "granite": of(
        "granite",
        **heads(4, 2),
        embedding_multiplier=3.0,
        residual_multiplier=0.5,
        attention_multiplier=0.3,
        logits_scaling=2.0,
    ),
    "granitemoe": of(
        "granitemoe",
        **heads(4, 2),
        embedding_multiplier=3.0,
        residual_multiplier=0.5,
        attention_multiplier=0.3,
        num_local_experts=4,
        num_experts_per_tok=2,
    ),
    "smollm3": of("smollm3", **heads(4, 2), no_rope_layers=[1, 0, 1]),
    "cohere2": of(
        "cohere2", **heads(4, 2, head_dim=32), **WINDOW, layer_types=MIXED, logit_scale=1.0
    ),
    "exaone4": of("exaone4", **heads(4, 2, head_dim=32), **WINDOW, layer_types=MIXED),
    "seed_oss": of("seed_oss", **heads(4, 2, head_dim=32)),
    "ernie4_5": of("ernie4_5", **heads(4, 2, head_dim=16)),
    "apertus": of("apertus", **heads(4, 2), **LLAMA3),
    "deepseek_v2": of(
        "deepseek_v2", **heads(4, 4), **LATENT, **ROUTED, q_lora_rank=None, head_dim=8
    ),
    "deepseek_v3": of(
        "deepseek_v3",
        **heads(4, 4),
        **LATENT,
        **ROUTED,
        q_lora_rank=16,
        n_group=2,
        topk_group=1,
        **YARN,
    ),
    "glm4_moe_lite": of("glm4_moe_lite", **heads(4, 4), **LATENT, **ROUTED, q_lora_rank=16),
    "starcoder2": of("starcoder2", **heads(4, 2)),
}


# One of each thing that makes a difference to a pass.
VARIED = (
    *("llama_gqa2", "llama3_scaling", "qwen2_window", "qwen2_yarn", "gemma2", "gemma3"),
    *("gemma4", "gemma4_shared", "phi3_partial", "glm4", "gpt_oss", "mixtral", "granite"),
    *("smollm3", "deepseek_v3"),
)


def build(name: str, dtype: torch.dtype = torch.float32, **changes: Any) -> PreTrainedModel:
    """The named model with weights from a fixed seed; biases and norms are random too.

    changes: of its configuration.
    """
    torch.manual_seed(0)
    model = FACTORIES[name](**changes)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.to(dtype).eval()


def build_for(tokenizer: Any, name: str, **changes: Any) -> PreTrainedModel:
    """The same for a tokenizer's vocabulary, and prompts of up to 2,048 tokens."""
    words = len(tokenizer)
    own = {"vocab_size_per_layer_input": words} if "gemma4" in name else {}
    return build(
        name,
        **{"vocab_size": words, "eos_token_id": tokenizer.eos_token_id, **own},
        **{"max_position_embeddings": 2048, **changes},
    )


_HYBRID = {**heads(4, 2), "intermediate_size": 96}
_MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_chunk_size": 32}
_FEW_EXPERTS = {"num_experts_per_tok": 2, "shared_intermediate_size": 48}
# Types whose KV can't be reused: with a state instead of keys, with both, positions that are added.
WITHOUT_KV: dict[str, dict[str, Any]] = {
    "mamba2": {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 1, "chunk_size": 32},
    "falcon_mamba": {"state_size": 8},
    "jamba": {
        **_HYBRID,
        **{"num_experts": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8},
    },
    "bamba": {**_HYBRID, **_MAMBA2, "attn_layer_indices": [1]},
    "qwen3_next": {
        **_HYBRID,
        **{"head_dim": 16, "linear_key_head_dim": 16, "linear_value_head_dim": 16},
        **{"linear_num_key_heads": 2, "linear_num_value_heads": 4, "num_experts": 4},
        **{"shared_expert_intermediate_size": 48},
        **{"layer_types": ["linear_attention", "full_attention"]},
        **EXPERTS,
    },
    "granitemoehybrid": {
        **_HYBRID,
        **_MAMBA2,
        **_FEW_EXPERTS,
        **{"num_local_experts": 4, "layer_types": ["mamba", "attention"]},
    },
    "lfm2": {**_HYBRID, "layer_types": ["conv", "full_attention"]},
    "rwkv": {"context_length": 1024},
    "gpt2": {"num_attention_heads": 4, "n_positions": 1024},
}


def build_without_kv(kind: str, tokenizer: Any) -> PreTrainedModel:
    """A model of such a type with weights from a fixed seed, for this tokenizer."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **{"hidden_size": 64, "num_hidden_layers": 2, "initializer_range": 0.2},
        **WITHOUT_KV[kind],
    )
    return AutoModelForCausalLM.from_config(config).eval()


VISION = {
    **{"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1},
    **{"num_attention_heads": 2, "image_size": 28, "patch_size": 14},
}


def of_text(kind: str, **text: Any) -> PreTrainedModel:
    """A tiny multimodal model with this text part."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind)
    for part, sizes in (
        (config.get_text_config(), {**COMMON, **heads(4, 2, head_dim=16), **text}),
        (config.vision_config, VISION),
    ):
        for name, value in sizes.items():
            setattr(part, name, value)
    config.image_token_id = config.image_token_index = 5
    config.mm_tokens_per_image = 4
    return AutoModelForImageTextToText.from_config(config).eval()
