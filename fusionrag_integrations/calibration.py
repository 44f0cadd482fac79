"""What was measured of a model, as a file: in a store, or beside the model's weights.

{"format": 1, "calibrations": {<model signature>: {"layers": [...], "whole_sentences": ...,
"sensitivity": ..., "measured": {...}}}}

Weights of another signature have calibrations of their own: the same model in another dtype too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.types import Calibration

CALIBRATION_FILE = "calibration.json"
FORMAT = 1

_CALIBRATION = TypeAdapter(Calibration)


def read_calibration(path: Path, signature: str) -> Calibration | None:
    """The calibration for a model; None where there is none. Raises `InvalidInputError`."""
    entry = _entries(path).get(signature)
    if entry is None:
        return None
    try:
        said = {name: value for name, value in entry.items() if name != "measured"}
        return _CALIBRATION.validate_json(json.dumps(said), strict=True)
    except (AttributeError, ValueError) as error:
        raise InvalidInputError(
            f"The calibration {path} is damaged ({error}). Delete it and calibrate again."
        ) from error


def write_calibration(
    path: Path, signature: str, calibration: Calibration, measured: Mapping[str, Any]
) -> None:
    """Put a model's calibration into the file, beside those of others.

    measured: how it was found, for people to read.
    """
    entries = _entries(path) | {signature: asdict(calibration) | {"measured": dict(measured)}}
    text = json.dumps({"format": FORMAT, "calibrations": entries}, indent=2)
    draft = path.with_suffix(".tmp")
    draft.write_text(text + "\n")
    draft.replace(path)


def _entries(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text())
        found, entries = content["format"], content["calibrations"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInputError(
            f"{path} is no calibration ({error!r}). Delete it and calibrate again."
        ) from error
    if found != FORMAT or not isinstance(entries, dict):
        raise InvalidInputError(
            f"{path} has format {found!r}; this version reads format {FORMAT}. Calibrate again."
        )
    return entries
