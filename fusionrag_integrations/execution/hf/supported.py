"""Which models can be used, and why others can't."""

from __future__ import annotations

from typing import Any

from fusionrag_integrations.errors import UnsupportedModelError

SUPPORTED_MODEL_TYPES = ("gemma3_text", "glm4", "llama", "mistral", "phi3", "qwen2", "qwen3")
FIXED_ROPE_TYPES = ("default", "linear", "llama3", "yarn")
# These change their frequencies with the length of the prompt, so stored keys stay true only
# below the length at which they switch.
SWITCHING_ROPE_TYPES = ("dynamic", "longrope")
SUPPORTED_LAYER_TYPES = ("full_attention", "sliding_attention")

_REFUSALS = {
    "deepseek_v2": "multi-head latent attention keeps no per-head keys to move",
    "deepseek_v3": "multi-head latent attention keeps no per-head keys to move",
    "falcon_h1": "it mixes attention with state-space layers, which keep no per-token state",
    "gemma3": "it is the multimodal model; load its text part (model type gemma3_text)",
    "jamba": "it mixes attention with state-space layers, which keep no per-token state",
    "llama4": "chunked attention depends on where a chunk of the prompt begins",
    "llama4_text": "chunked attention depends on where a chunk of the prompt begins",
    "mamba": "state-space layers keep no per-token state",
    "mamba2": "state-space layers keep no per-token state",
    "qwen3_next": "it mixes attention with linear attention, which keeps no per-token state",
}


def refuse_unsupported(config: Any) -> None:
    """Raise `UnsupportedModelError`, naming the reason, unless this configuration is supported."""
    kind = config.model_type
    if kind not in SUPPORTED_MODEL_TYPES:
        reason = _REFUSALS.get(kind, "its attention has not been checked")
        raise UnsupportedModelError(
            f"Models of type {kind!r} are not supported: {reason}. "
            f"Supported types: {', '.join(SUPPORTED_MODEL_TYPES)}."
        )
    for layer_type in sorted(set(getattr(config, "layer_types", None) or ())):
        if layer_type not in SUPPORTED_LAYER_TYPES:
            raise UnsupportedModelError(
                f"This {kind} model has {layer_type} layers; only "
                f"{' and '.join(SUPPORTED_LAYER_TYPES)} layers keep per-token keys that can move."
            )
    if getattr(config, "use_bidirectional_attention", False):
        raise UnsupportedModelError(
            f"This {kind} model attends in both directions; take one with causal attention."
        )
    for rope_type in sorted(_rope_types(config)):
        if rope_type not in FIXED_ROPE_TYPES + SWITCHING_ROPE_TYPES:
            raise UnsupportedModelError(
                f"RoPE scaling {rope_type!r} is not supported; supported are "
                f"{', '.join(FIXED_ROPE_TYPES + SWITCHING_ROPE_TYPES)}."
            )


def _rope_parameters(config: Any) -> list[dict[str, Any]]:
    """One dictionary of RoPE parameters, or one per layer type."""
    parameters = config.rope_parameters
    if "rope_type" in parameters:
        return [parameters]
    return [p for p in parameters.values() if p is not None]


def _rope_types(config: Any) -> set[str]:
    return {p["rope_type"] for p in _rope_parameters(config)}


def has_plain_rope(config: Any) -> bool:
    """Whether positions are rotated by RoPE that isn't scaled."""
    return _rope_types(config) == {"default"}


def context_window(config: Any) -> int:
    """Tokens that a prompt and its answer may have together."""
    limit = int(config.max_position_embeddings)
    for parameters in _rope_parameters(config):
        if parameters["rope_type"] in SWITCHING_ROPE_TYPES:
            switch = parameters.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", None
            )
            limit = min(limit, int(switch or limit))
    return limit
