"""Which models can be used, and why others can't."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from transformers import PreTrainedModel

from fusionrag_integrations.errors import UnsupportedModelError

# Tiny models of these pass the gates (tests/test_gates.py). Others are tried (`admission.py`).
TESTED_MODEL_TYPES = frozenset(
    (
        *("apertus", "cohere2", "deepseek_v2", "deepseek_v3", "ernie4_5", "exaone4", "gemma2"),
        *("gemma3_text", "gemma4_text", "glm4", "glm4_moe", "glm4_moe_lite", "gpt_oss"),
        *("granite", "granitemoe", "llama", "ministral", "ministral3", "mistral"),
        *("mixtral", "olmo2", "olmo3", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe"),
        *("seed_oss", "smollm3", "starcoder2"),
    )
)
FIXED_ROPE_TYPES = ("default", "linear", "llama3", "proportional", "yarn")
# These change their frequencies with the length of the prompt, so stored keys stay true only
# below the length at which they switch.
SWITCHING_ROPE_TYPES = ("dynamic", "longrope")
MOST = 1 << 20  # tokens, where no limit is known: frameworks are told a number
SUPPORTED_LAYER_TYPES = ("full_attention", "sliding_attention")
# What is said of a model that is refused, since any can be used so.
IN_FULL = "Give kv='none' to use it all the same: no KV is kept, and prompts are computed in full."
_PARTS = ("embed_tokens", "layers", "norm", "rotary_emb")  # of a base model
_NO_STATE = "state-space layers keep no per-token state"
_MIXED = "it mixes attention with layers that keep no per-token state"
_RECURRENT = "its layers keep one state of all that came before, not keys of each token"
_BY_CHUNK = "chunked attention depends on where a chunk of the prompt begins"

_REFUSALS = {
    "bailing_hybrid": _MIXED,
    "bamba": _MIXED,
    "falcon_h1": _MIXED,
    "falcon_mamba": _NO_STATE,
    "granitemoehybrid": _MIXED,
    "jamba": _MIXED,
    "kimi_linear": _MIXED,
    "llama4": _BY_CHUNK,
    "llama4_text": _BY_CHUNK,
    "mamba": _NO_STATE,
    "mamba2": _NO_STATE,
    "minimax": _MIXED,
    "nemotron_h": _MIXED,
    "olmo_hybrid": _MIXED,
    "qwen3_next": _MIXED,
    "recurrent_gemma": _MIXED,
    "rwkv": _RECURRENT,
    "xlstm": _RECURRENT,
    "zamba": _MIXED,
    "zamba2": _MIXED,
}


def refuse_unsupported(config: Any) -> None:
    """Raise `UnsupportedModelError`, naming the reason, unless this configuration is supported."""
    kind = config.model_type
    reason = _REFUSALS.get(kind)
    if reason is not None:
        raise UnsupportedModelError(
            f"Models of type {kind!r} are not supported: {reason}. {IN_FULL}"
        )
    if not getattr(config, "rope_parameters", None):
        raise UnsupportedModelError(
            f"Models of type {kind!r} are not supported: their configuration has no "
            f"rope_parameters, by which keys could be moved. {IN_FULL}"
        )
    for layer_type in sorted(set(getattr(config, "layer_types", None) or ())):
        if layer_type not in SUPPORTED_LAYER_TYPES:
            raise UnsupportedModelError(
                f"This {kind} model has {layer_type} layers; only "
                f"{' and '.join(SUPPORTED_LAYER_TYPES)} layers keep per-token keys that can move. "
                f"{IN_FULL}"
            )
    if getattr(config, "use_bidirectional_attention", False) in (True, "all"):  # or "vision"
        raise UnsupportedModelError(
            f"This {kind} model attends in both directions; take one with causal attention."
        )
    for rope_type in sorted(_rope_types(config)):
        if rope_type not in FIXED_ROPE_TYPES + SWITCHING_ROPE_TYPES:
            raise UnsupportedModelError(
                f"RoPE scaling {rope_type!r} is not supported; supported are "
                f"{', '.join(FIXED_ROPE_TYPES + SWITCHING_ROPE_TYPES)}. {IN_FULL}"
            )


def refuse_other_structure(model: PreTrainedModel) -> None:
    """Raise `UnsupportedModelError` unless the model has Llama's parts, by Llama's names.

    What runs some layers of a model takes it apart by them.
    """
    kind, base = model.config.model_type, model.base_model
    layers = getattr(base, "layers", ())
    attentions: list[Any] = [getattr(layer, "self_attn", None) for layer in layers]
    lacking = [name for name in _PARTS if getattr(base, name, None) is None]
    if not all(hasattr(attention, "layer_idx") for attention in attentions):
        lacking.append("layer_idx in each layer's attention")
    if not all(rotary_function(attention) for attention in attentions):
        lacking.append("apply_rotary_pos_emb")
    if lacking:
        raise UnsupportedModelError(
            f"Models of type {kind!r} are not supported: they aren't made of layers as Llama is. "
            f"They have no {', no '.join(lacking)}. {IN_FULL}"
        )
    if any(weight.is_meta for weight in model.parameters()):
        raise UnsupportedModelError(
            f"Weights of this {kind} model are offloaded to host memory or to disk between passes, "
            "which is not supported. Load it on devices that hold all of it together."
        )


def rotary_function(attention: Any) -> Callable[..., Any] | None:
    """What the model's family rotates queries and keys by; None where it has nothing like it."""
    family = sys.modules[type(attention).__module__]
    for name in ("apply_rotary_pos_emb", "apply_rotary_emb"):
        if (function := getattr(family, name, None)) is not None:
            return function  # type: ignore[no-any-return]
    return None


def _rope_parameters(config: Any) -> list[dict[str, Any]]:
    """One dictionary of RoPE parameters, or one per layer type; none without RoPE."""
    parameters = getattr(config, "rope_parameters", None) or {}
    if "rope_type" in parameters:
        return [parameters]
    return [p for p in parameters.values() if p is not None]


def _rope_types(config: Any) -> set[str]:
    return {p["rope_type"] for p in _rope_parameters(config)}


def has_plain_rope(config: Any) -> bool:
    """Whether positions are rotated by RoPE that isn't scaled."""
    return _rope_types(config) == {"default"}


def context_window(config: Any, tokenizer: Any) -> int:
    """Tokens that a prompt and its answer may have together.

    A model that has a state instead of positions may read any number; then its tokenizer says.
    """
    known = (getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len"))
    positions = next((limit for limit in known if limit is not None and limit > 0), None)
    limit = int(positions or min(getattr(tokenizer, "model_max_length", MOST), MOST))
    for parameters in _rope_parameters(config):
        if parameters.get("rope_type") in SWITCHING_ROPE_TYPES:
            switch = parameters.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", None
            )
            limit = min(limit, int(switch or limit))
    return limit
