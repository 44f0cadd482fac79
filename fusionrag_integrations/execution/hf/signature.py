"""What stored KV depends on, as one string, and by its parts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import xxhash
from tokenizers import Tokenizer
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PreTrainedModel

from fusionrag_integrations.execution.hf.peft_adapters import adapter_state

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # of an object, another in each process
_PIECE_BYTES = 1 << 26  # that are copied from a GPU at a time
_OF_WEIGHTS = {"dtype", "quantization_config"}  # what a configuration repeats of them
_UNRELATED = ("_name_or_path", "architectures", "transformers_version", "torch_dtype")


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """What stored KV depends on, and what that is made of.

    signature: of all of it; another signature, another KV. parts: by their names, to say which
    differ: what can be read, or a digest.
    """

    signature: str
    parts: Mapping[str, str]


def model_identity(
    model: PreTrainedModel, tokenizer: Any, surroundings: str, quantisation: str
) -> ModelIdentity:
    """See `CausalModel.identity`. quantisation: of the weights, or their dtype."""
    digest = xxhash.xxh3_128()
    for name, value in sorted(_weights(model).items()):
        for part, tensor in _plain(name, value):
            digest.update(f"{part}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
            for piece in _in_host_memory(tensor.detach()):
                digest.update(piece.numpy().data)
    dtype = str(model.dtype).removeprefix("torch.")
    parts = {
        "dtype": dtype,
        "quantisation": "none" if quantisation == dtype else quantisation,
        "weights": digest.hexdigest(),
    }
    config = {key: value for key, value in model.config.to_dict().items() if key not in _UNRELATED}
    apart = {key: config[key] for key in config.keys() - _OF_WEIGHTS}
    settings = _as_json({"": config.get("quantization_config")})
    parts["quantisation settings"] = xxhash.xxh3_64_hexdigest(settings.encode())
    adapters = repr(state) if (state := adapter_state(model)) else ""
    others = {
        "configuration": (_as_json(config), _as_json(apart)),
        "adapters": (adapters, adapters),
        "tokenizer": (tokens := _tokenization(tokenizer), tokens),
        "ingest prefix": (surroundings, surroundings),
    }
    for name, (whole, own) in others.items():
        digest.update(whole.encode())
        parts[name] = xxhash.xxh3_64_hexdigest(own.encode())
    return ModelIdentity(digest.hexdigest(), parts)


def _as_json(config: Mapping[str, Any]) -> str:
    return json.dumps(config, sort_keys=True, default=str)


def _weights(model: PreTrainedModel) -> dict[str, Any]:
    """All of them; some quantisations keep theirs outside the modules' parameters (MXFP4)."""
    quantizer = getattr(model, "hf_quantizer", None)
    kept = quantizer.get_state_dict_and_metadata(model)[0] if quantizer is not None else None
    packed = {
        f"{name}.{part}": tensor
        for name, weight in model.named_parameters()
        if getattr(weight, "quant_state", None) is not None
        for part, tensor in weight.quant_state.as_dict(packed=True).items()
    }
    if packed:  # bitsandbytes' in 4 bit, which asking for a state dict would change
        return packed | dict(model.named_parameters()) | _saved_buffers(model)
    weights: dict[str, Any] = model.state_dict() if kept is None else kept
    return weights


def _saved_buffers(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Those that a state dict has: the others are made of the configuration."""
    return {
        f"{path}.{name}": buffer
        for path, module in model.named_modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set
    }


def _plain(name: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """A weight as plain tensors. Quantised ones are several, and how they belong together."""
    if not isinstance(value, torch.Tensor):  # what some quantisations note beside their weights
        value = torch.frombuffer(bytearray(repr(value).encode()), dtype=torch.uint8)
    if not is_traceable_wrapper_subclass(value):
        yield name, value
        return
    parts, context = value.__tensor_flatten__()
    made_of = f"{name}:{type(value).__name__}:{_ADDRESS.sub('', repr(context))}"
    for part in parts:
        yield from _plain(f"{made_of}.{part}", getattr(value, part))


def _in_host_memory(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """A weight's bytes. Those of a GPU come in pieces, each valid until the next is asked for.

    Pinned memory takes them several times as fast, and no second copy of a weight is made.
    """
    raw = tensor.contiguous().reshape(-1).view(torch.uint8)
    if raw.device.type == "cpu":
        yield raw
        return
    size = max(1, min(_PIECE_BYTES, len(raw)))
    staging = torch.empty(size, dtype=torch.uint8, pin_memory=raw.device.type == "cuda")
    for start in range(0, len(raw), size):
        piece = raw[start : start + size]
        yield staging[: len(piece)].copy_(piece)


def _tokenization(tokenizer: Any) -> str:
    """What a tokenizer does, as JSON. Truncation and padding aren't part of it: calls set them."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    return str(backend.to_str())
