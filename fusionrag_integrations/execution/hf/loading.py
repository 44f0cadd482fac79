"""A supported model and its tokenizer from a directory, the hub or a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from fusionrag_integrations.errors import InvalidInputError, UnsupportedModelError
from fusionrag_integrations.execution.hf.gguf import find_gguf, load_gguf
from fusionrag_integrations.execution.hf.peft_adapters import refuse_adapter
from fusionrag_integrations.execution.hf.supported import refuse_unsupported


def load_model(
    name_or_path: str | Path, dtype: torch.dtype | str, gguf_file: str | None
) -> tuple[PreTrainedModel, Any, str]:
    """A model on the CPU, its tokenizer, and the directory, GGUF file or hub name of both.

    Raises as `CausalModel.load` does.
    """
    file = find_gguf(name_or_path, gguf_file)
    if file is not None:
        return *load_gguf(file, dtype), str(file)
    try:
        refuse_adapter(name_or_path)
        config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
    except UnsupportedModelError:
        raise
    except Exception as error:  # of many kinds: what a file says wrongly shows anywhere
        raise InvalidInputError(
            f"{str(name_or_path)!r} is not a model that transformers can load: {error} "
            "Give a directory with config.json, weights and tokenizer, a .gguf file, or a hub "
            "name."
        ) from error
    refuse_unsupported(config)
    model, tokenizer = _load_pretrained(name_or_path, dtype)
    path = Path(name_or_path)
    return model, tokenizer, str(path.resolve() if path.is_dir() else name_or_path)


def _load_pretrained(
    name_or_path: str | Path, dtype: torch.dtype | str
) -> tuple[PreTrainedModel, Any]:
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
        model, loaded = AutoModelForCausalLM.from_pretrained(
            name_or_path, dtype=dtype, trust_remote_code=False, output_loading_info=True
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # `safetensors` and `tokenizers` have errors of their own
        raise InvalidInputError(
            f"The model at {str(name_or_path)!r} can't be loaded: {error} "
            "Its directory needs whole weights and a tokenizer beside config.json."
        ) from error
    if missing := sorted(loaded["missing_keys"]):  # transformers would make them up
        raise InvalidInputError(
            f"The model at {str(name_or_path)!r} can't be loaded: its weights lack "
            f"{len(missing)} tensors, {missing[0]} among them. Its directory needs whole "
            "weights and a tokenizer beside config.json."
        )
    if not tokenizer.is_fast:
        raise UnsupportedModelError(
            f"{str(name_or_path)!r} has no fast tokenizer, which finding chunks by their "
            "character offsets needs. Convert it to a tokenizer.json."
        )
    return model, tokenizer
