"""What stored KV depends on, as one string."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import torch
import xxhash
from tokenizers import Tokenizer
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PreTrainedModel

from fusionrag_integrations.execution.hf.peft_adapters import adapter_state

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # of an object, another in each process
_UNRELATED = ("_name_or_path", "architectures", "transformers_version", "torch_dtype")


def model_signature(model: PreTrainedModel, tokenizer: Any, surroundings: str) -> str:
    """See `CausalModel.signature`."""
    digest = xxhash.xxh3_128()
    for name, value in sorted(_weights(model).items()):
        for part, tensor in _plain(name, value):
            digest.update(f"{part}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
            raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(raw.numpy().data)
    config = {key: value for key, value in model.config.to_dict().items() if key not in _UNRELATED}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    if adapters := adapter_state(model):
        digest.update(repr(adapters).encode())
    digest.update(_tokenization(tokenizer).encode())
    digest.update(surroundings.encode())
    return digest.hexdigest()


def _weights(model: PreTrainedModel) -> dict[str, Any]:
    """All of them; some quantisations keep theirs outside the modules' parameters (MXFP4)."""
    quantizer = getattr(model, "hf_quantizer", None)
    kept = quantizer.get_state_dict_and_metadata(model)[0] if quantizer is not None else None
    weights: dict[str, Any] = model.state_dict() if kept is None else kept
    return weights


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


def _tokenization(tokenizer: Any) -> str:
    """What a tokenizer does, as JSON. Truncation and padding aren't part of it: calls set them."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    return str(backend.to_str())
