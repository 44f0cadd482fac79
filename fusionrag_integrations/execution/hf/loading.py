"""A model and its tokenizer from a directory, the hub or a GGUF file."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import is_accelerate_available

from fusionrag_integrations.errors import (
    FusionRAGError,
    InvalidInputError,
    UnsupportedModelError,
)
from fusionrag_integrations.execution.hf.gguf import find_gguf, load_gguf
from fusionrag_integrations.execution.hf.peft_adapters import base_of_adapter, with_adapter

# From what the text part's weights are called in a multimodal model's file, as of any year.
_TEXT_WEIGHTS = {
    r"^(?:model\.)?(?:language_model|text_model)\.(?:model\.)?(?!lm_head)": "model.",
    r"^language_model\.lm_head": "lm_head",
}

_SCALES = re.compile(r"^model\.layers\..+\.(weight_scale\w*|scales)$")  # of matrices beside them


def load_model(
    name_or_path: str | Path,
    device: torch.device,
    dtype: torch.dtype | str,
    gguf_file: str | None,
    check_config: Callable[[Any], None],
) -> tuple[PreTrainedModel, Any, str]:
    """A model on a device, its tokenizer, and the directory, GGUF file or hub name of both.

    check_config: raises where the configuration's model can't be used, before weights are loaded.
    Raises as `PlainModel.load` does.
    """
    file = find_gguf(name_or_path, gguf_file)
    if file is not None:
        model, tokenizer = load_gguf(file, dtype)
        return model.to(device), tokenizer, str(file)
    try:
        base = base_of_adapter(name_or_path)
        config = AutoConfig.from_pretrained(base or name_or_path, trust_remote_code=False)
    except FusionRAGError:
        raise
    except Exception as error:  # of many kinds: what a file says wrongly shows anywhere
        raise InvalidInputError(
            f"{str(name_or_path)!r} is not a model that transformers can load: {error} "
            "Give a directory with config.json, weights and tokenizer, a .gguf file, or a hub "
            "name."
        ) from error
    if base is not None:
        model, tokenizer, _ = load_model(base, device, dtype, None, check_config)
        with suppress(OSError, ValueError):  # an adapter may have a tokenizer of its own
            tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
        check_fast(tokenizer, name_or_path)
        return with_adapter(model, name_or_path), tokenizer, _source(name_or_path)
    text = _text_part(config)
    check_config(text)
    how = {} if text is config else {"config": text, "key_mapping": _TEXT_WEIGHTS}
    quantised = getattr(text, "quantization_config", None) is not None
    model, tokenizer = _load_pretrained(name_or_path, device, dtype, quantised, how)
    return model, tokenizer, _source(name_or_path)


def _text_part(config: Any) -> Any:
    """The configuration of a multimodal model's text part, with what the whole says of it, too."""
    try:
        text = config.get_text_config()
    except ValueError:  # there are several
        return config
    if text is not config:
        tied = getattr(config, "tie_word_embeddings", None)
        if tied is not None:
            text.tie_word_embeddings = tied
        if getattr(config, "quantization_config", None) is not None:
            text.quantization_config = config.quantization_config
    return text


def _source(name_or_path: str | Path) -> str:
    """A directory as it is found from anywhere, or a hub name."""
    path = Path(name_or_path)
    return str(path.resolve() if path.is_dir() else name_or_path)


def _load_pretrained(
    name_or_path: str | Path,
    device: torch.device,
    dtype: torch.dtype | str,
    quantised: bool,
    how: dict[str, Any],
) -> tuple[PreTrainedModel, Any]:
    """quantised: whether its config says so. how: more arguments of `from_pretrained`."""
    # Straight to a GPU, without a copy in host memory. Quantised weights may be unable to move.
    straight = (quantised or device.type != "cpu") and is_accelerate_available()
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
        model, loaded = AutoModelForCausalLM.from_pretrained(
            name_or_path,
            dtype=dtype,
            trust_remote_code=False,
            output_loading_info=True,
            device_map={"": device} if straight else None,
            **how,
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # `safetensors` and `tokenizers` have errors of their own
        lacking = (ImportError, RuntimeError, ValueError) if quantised else ImportError
        if isinstance(error, lacking):  # a package, or a kernel for this device
            raise InvalidInputError(
                f"The model at {str(name_or_path)!r} can't be loaded here: "
                f"{str(error).rstrip('.')}. Install what is missing, or take the model with "
                "weights that aren't quantised."
            ) from error
        raise InvalidInputError(
            f"The model at {str(name_or_path)!r} can't be loaded: {error} "
            "Its directory needs whole weights and a tokenizer beside config.json."
        ) from error
    if scales := sorted(name for name in loaded["unexpected_keys"] if _SCALES.search(name)):
        raise UnsupportedModelError(
            f"The weights of {str(name_or_path)!r} are quantised in a way that transformers can't "
            f"tell from its config.json: it passes over {len(scales)} tensors, {scales[0]} among "
            "them, so the model would be another one. Take it with weights of another format."
        )
    if missing := sorted(loaded["missing_keys"]):  # transformers would make them up
        raise InvalidInputError(
            f"The model at {str(name_or_path)!r} can't be loaded: its weights lack "
            f"{len(missing)} tensors, {missing[0]} among them. Its directory needs whole "
            "weights and a tokenizer beside config.json."
        )
    check_fast(tokenizer, name_or_path)
    if quantised and isinstance(dtype, torch.dtype) and not hasattr(model, "hf_quantizer"):
        _unify(model, dtype)
    return (model if straight else model.to(device)), tokenizer


def _unify(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Where weights were unpacked as there is no kernel for them, the others are as in the file."""
    for weight in model.parameters():
        if weight.dtype in (torch.bfloat16, torch.float16):
            weight.data = weight.data.to(dtype)


def check_fast(tokenizer: Any, name_or_path: str | Path) -> None:
    """Raise `UnsupportedModelError` for a tokenizer that can't say where its tokens come from."""
    if not tokenizer.is_fast:
        raise UnsupportedModelError(
            f"{str(name_or_path)!r} has no fast tokenizer, which finding chunks by their "
            "character offsets needs. Convert it to a tokenizer.json."
        )
