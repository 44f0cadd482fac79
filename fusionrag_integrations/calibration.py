"""What was measured of a model, as a file: in a store, or beside the model's weights.

{"format": 1, "calibrations": {<model signature>: {"layers": [...], "whole_sentences": ...,
"sensitivity": ..., "break_even": {<device>: <tokens>}, "measured": {...}}}}

break_even is how long a prompt must be for reuse to be quicker than a full prefill on a device.
Weights of another signature have calibrations of their own: the same model in another dtype too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fusionrag_integrations.durable import read_file, write_output
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.inputs import parse_json
from fusionrag_integrations.types import Calibration

CALIBRATION_FILE = "calibration.json"
FORMAT = 1
MAX_BYTES = 1 << 26

_NOT_OF_SELECTION = ("break_even", "measured")


def read_calibration(path: Path, signature: str) -> Calibration | None:
    """The calibration for a model; None where there is none. Raises `InvalidInputError`."""
    entry = _entries(path).get(signature)
    if entry is None:
        return None
    from pydantic import TypeAdapter  # an engine without a calibration needs none

    try:
        said = {name: value for name, value in entry.items() if name not in _NOT_OF_SELECTION}
        return TypeAdapter(Calibration).validate_json(json.dumps(said), strict=True)
    except (AttributeError, ValueError) as error:
        raise _damaged(path, error) from error


def read_break_even(path: Path, signature: str, device: str) -> int:
    """From how many tokens on reuse pays for a model on a device; 0 where it wasn't measured.

    Raises `InvalidInputError` for a file that is damaged.
    """
    return _break_even(path, signature).get(device, 0)


def write_calibration(
    path: Path,
    signature: str,
    calibration: Calibration,
    measured: Mapping[str, Any],
    break_even: Mapping[str, int] | None = None,
) -> None:
    """Put a model's calibration into the file, beside those of others.

    measured: how it was found, for people to read. break_even: tokens by device; those of other
    devices stay. Raises `InvalidInputError` where the file is damaged or can't be written.
    """
    lengths = _break_even(path, signature) | dict(break_even or {})
    entry = asdict(calibration) | ({"break_even": lengths} if lengths else {})
    entries = _entries(path) | {signature: entry | {"measured": dict(measured)}}
    text = json.dumps({"format": FORMAT, "calibrations": entries}, indent=2)
    write_output(path, f"{text}\n".encode())


def _break_even(path: Path, signature: str) -> dict[str, int]:
    entry = _entries(path).get(signature)
    if entry is None:
        return {}
    from pydantic import NonNegativeInt, TypeAdapter

    try:
        lengths = TypeAdapter(dict[str, NonNegativeInt])
        return lengths.validate_python(entry.get("break_even", {}), strict=True)
    except (AttributeError, ValueError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> InvalidInputError:
    return InvalidInputError(
        f"The calibration {path} is damaged ({error}). Delete it and calibrate again."
    )


def _entries(path: Path) -> dict[str, Any]:
    try:
        # Its directory may be a link, as a store may lie behind one; the file itself may not.
        content = parse_json(read_file(path.parent.resolve() / path.name, MAX_BYTES))
        found, entries = content["format"], content["calibrations"]
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidInputError(
            f"{path} is no calibration ({error!r}). Delete it and calibrate again."
        ) from error
    if found != FORMAT or not isinstance(entries, dict):
        raise InvalidInputError(
            f"{path} has format {found!r}; this version reads format {FORMAT}. Calibrate again."
        )
    return entries
