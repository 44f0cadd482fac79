"""LoRA and other adapters of peft's: they are part of a model, and KV belongs to it with them."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Hashable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import find_adapter_config_file

from fusionrag_integrations.errors import InvalidInputError, UnsupportedModelError

_BESIDE_LAYERS = frozenset(  # which act by more than the layers: tokens of their own, or a gate
    (
        *("ADAPTION_PROMPT", "CARTRIDGE", "CPT", "MULTITASK_PROMPT_TUNING"),
        *("P_TUNING", "PREFIX_TUNING", "PROMPT_TUNING", "XLORA"),
    )
)


def base_of_adapter(name_or_path: str | Path) -> str | None:
    """The model that the adapter in a directory or hub repository is for; None if it holds none.

    Raises `InvalidInputError` for one that doesn't say or can't be loaded here, and
    `UnsupportedModelError` for one that isn't part of the model's layers.
    """
    found = find_adapter_config_file(str(name_or_path))
    if found is None:
        return None
    config: object = None
    with suppress(ValueError):
        config = json.loads(Path(found).read_bytes())
    fields = config if isinstance(config, dict) else {}
    kind, base = fields.get("peft_type"), fields.get("base_model_name_or_path")
    _refuse_beside_layers(repr(str(name_or_path)), fields)
    if not isinstance(base, str) or not base:
        raise InvalidInputError(
            f"{str(name_or_path)!r} holds an adapter whose adapter_config.json doesn't name its "
            "base model. Put it there as base_model_name_or_path; or, if the directory holds a "
            "whole model, move that file away."
        )
    if find_spec("peft") is None:
        raise InvalidInputError(
            f"{str(name_or_path)!r} holds an adapter ({kind}, for {base}), and loading it needs "
            "peft: pip install 'fusionrag-integrations[peft]'"
        )
    return base


def with_adapter(model: PreTrainedModel, name_or_path: str | Path) -> PreTrainedModel:
    """The model with the adapter that is there, merged into its weights unless these are quantised.

    Raises `InvalidInputError` for one that doesn't fit the model.
    """
    from peft import PeftModel

    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            adapted = PeftModel.from_pretrained(model, str(name_or_path))
        if missing := [
            str(one.message) for one in told if "missing adapter keys" in str(one.message)
        ]:
            raise ValueError(missing[0])
        if getattr(model, "hf_quantizer", None) is None:
            adapted = adapted.merge_and_unload(safe_merge=True)
    except Exception as error:  # of many kinds, as files and shapes are
        raise InvalidInputError(
            f"The adapter at {str(name_or_path)!r} can't be put into {model.name_or_path}: {error} "
            "It needs its weights beside adapter_config.json, and the model that it was made for."
        ) from error
    return without_wrapper(adapted)


def without_wrapper(model: Any) -> Any:
    """Transformers' model within peft's, whose layers have the adapters; another model as it is.

    Raises `UnsupportedModelError` for adapters that act by more than the layers.
    """
    if not _is_of_peft(model):
        return model
    for config in model.peft_config.values():
        _refuse_beside_layers(f"This {type(model).__name__}", config.to_dict())
    return model.get_base_model()


def adapter_state(model: torch.nn.Module) -> tuple[Hashable, ...]:
    """Which adapters act in a model's layers, and how strongly; empty where there are none."""
    if "peft" not in sys.modules:  # no layer is of it; this is asked before each request
        return ()
    return tuple(
        (
            name,
            *(tuple(layer.merged_adapters), layer.disable_adapters),
            tuple((one, getattr(layer, "scaling", {}).get(one)) for one in layer.active_adapters),
        )
        for name, layer in model.named_modules()
        if _is_of_peft(layer) and hasattr(layer, "active_adapters")
    )


def _is_of_peft(module: object) -> bool:
    return any(kind.__module__.partition(".")[0] == "peft" for kind in type(module).__mro__)


def _refuse_beside_layers(what: str, config: Mapping[str, Any]) -> None:
    kind = getattr(config.get("peft_type"), "value", config.get("peft_type"))
    if kind in _BESIDE_LAYERS or config.get("alora_invocation_tokens"):
        raise UnsupportedModelError(
            f"{what} holds an adapter ({kind}) that acts by more than the model's layers, by "
            "tokens or gates of its own, which is not supported; take one such as plain LoRA."
        )
