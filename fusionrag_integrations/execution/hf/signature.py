"""What stored KV depends on, as one string."""

from __future__ import annotations

import json
from typing import Any

import torch
import xxhash
from tokenizers import Tokenizer
from transformers import PreTrainedModel

_UNRELATED = ("_name_or_path", "architectures", "transformers_version", "torch_dtype")


def model_signature(model: PreTrainedModel, tokenizer: Any, surroundings: str) -> str:
    """See `CausalModel.signature`."""
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy())
    config = {key: value for key, value in model.config.to_dict().items() if key not in _UNRELATED}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    digest.update(_tokenization(tokenizer).encode())
    digest.update(surroundings.encode())
    return digest.hexdigest()


def _tokenization(tokenizer: Any) -> str:
    """What a tokenizer does, as JSON. Truncation and padding aren't part of it: calls set them."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    return str(backend.to_str())
