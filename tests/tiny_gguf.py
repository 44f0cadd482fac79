"""GGUF files of tiny models, written as llama.cpp's converter writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedModel

from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.execution.hf.gguf import require_gguf_extra

try:
    require_gguf_extra()
except InvalidInputError as missing:
    pytest.skip(str(missing), allow_module_level=True)
gguf: Any = import_module("gguf")

CONTROL = 3  # the type of tokens that are never made from text
ARCHITECTURE_OF = {"gemma3_text": "gemma3", "mistral": "llama", "qwen3_moe": "qwen3moe"}


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    tokenizer: Any,
    metadata: Mapping[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray] | None = None,
    quantised: str = "F32",
) -> Path:
    """Write `model` with its byte-level tokenizer to `path`.

    metadata: further entries of the architecture's own, or others in their places. tensors: the
    same. quantised: how
    matrices are kept, by ggml's name.
    """
    config = model.config
    architecture = ARCHITECTURE_OF.get(config.model_type, config.model_type)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("Tiny")
    add = {str: writer.add_string, float: writer.add_float32, int: writer.add_uint32}
    for key, value in (_described(config) | dict(metadata or {})).items():
        add[type(value)](f"{architecture}.{key}", value)
    _add_tokenizer(writer, tokenizer)
    for name, tensor in (_tensors(model, architecture) | dict(tensors or {})).items():
        kind = gguf.GGMLQuantizationType[quantised if tensor.ndim == 2 else "F32"]
        writer.add_tensor(name, gguf.quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _described(config: Any) -> dict[str, Any]:
    rope = config.rope_parameters
    head_size = (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    entries = {
        "context_length": config.max_position_embeddings,
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "attention.key_length": head_size,
        "attention.value_length": head_size,
        "rope.dimension_count": head_size,
        "rope.freq_base": rope.get("full_attention", rope)["rope_theta"],
        "vocab_size": config.vocab_size,
    }
    if config.model_type == "qwen3_moe":
        entries["expert_count"] = config.num_experts
        entries["expert_used_count"] = config.num_experts_per_tok
        entries["expert_feed_forward_length"] = config.moe_intermediate_size
    if config.model_type == "gemma3_text":
        entries["attention.sliding_window"] = config.sliding_window
    return entries


def _add_tokenizer(writer: Any, tokenizer: Any) -> None:
    state = tokenizer.backend_tokenizer
    tokens = sorted(state.get_vocab(), key=state.get_vocab().__getitem__)
    special = set(tokenizer.all_special_tokens)
    merges = json.loads(state.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)


def _tensors(model: PreTrainedModel, architecture: str) -> dict[str, np.ndarray]:
    """The weights by llama.cpp's names, changed as it keeps them."""
    config = model.config
    kind = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    found = {}
    for name, parameter in model.named_parameters():  # a tied output isn't among them
        stem, _, ending = name.rpartition(".")
        array = parameter.detach().float().numpy()
        if stem.endswith("experts"):
            block = f"blk.{name.split('.')[2]}"
            kinds = ("down",) if ending == "down_proj" else ("gate", "up")
            parts = np.split(array, len(kinds), axis=1)
            found |= {f"{block}.ffn_{k}_exps.weight": p for k, p in zip(kinds, parts, strict=True)}
            continue
        if architecture == "llama" and stem.endswith("q_proj"):
            array = _interleaved(array, config.num_attention_heads)
        elif architecture == "llama" and stem.endswith("k_proj"):
            array = _interleaved(array, config.num_key_value_heads)
        elif architecture == "gemma3" and stem.endswith("norm"):
            array = array + 1
        found[f"{names.get_name(stem)}.{ending}"] = array
    return found


def _interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows in the order in which llama.cpp rotates them: pairs side by side."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)
