"""LoRA and other adapters of peft, which are refused by name.

Whether transformers loads one depends on what else is installed, and an object that has one may
be switched to another while KV of the first is stored. Merged, it is a model like any.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import torch
from transformers.utils import find_adapter_config_file

from fusionrag_integrations.errors import UnsupportedModelError

_MERGE = (
    "Merge it into its base model, with peft, and load what you save: "
    "model = PeftModel.from_pretrained(base_model, adapter).merge_and_unload(), then "
    "model.save_pretrained(directory) and tokenizer.save_pretrained(directory)."
)


def refuse_adapter(name_or_path: str | Path) -> None:
    """Raise `UnsupportedModelError` for a directory or hub repository that holds an adapter."""
    found = find_adapter_config_file(str(name_or_path))
    if found is None:
        return
    config: object = None
    with suppress(ValueError):
        config = json.loads(Path(found).read_bytes())
    fields = config if isinstance(config, dict) else {}
    kind = fields.get("peft_type", "of unknown kind")
    base = fields.get("base_model_name_or_path", "a base model that it does not name")
    raise UnsupportedModelError(
        f"{str(name_or_path)!r} holds an adapter ({kind}, for {base}), which is not supported. "
        f"{_MERGE}"
    )


def refuse_adapted(model: torch.nn.Module) -> None:
    """Raise `UnsupportedModelError` for a model that peft has put adapters into, or around it."""
    if any(type(part).__module__.partition(".")[0] == "peft" for part in model.modules()):
        raise UnsupportedModelError(
            f"This {type(model).__name__} has an adapter of peft's, which is not supported. "
            f"{_MERGE}"
        )
