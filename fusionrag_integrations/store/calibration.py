"""What was measured of a model, as a file in a store or next to the model's weights.

{"format": 1, "calibrations": {<model signature>: {"layers": [...], "whole_sentences": ...,
"sensitivity": ..., "break_even": {<device>: <tokens>}, "measured": {...}}}}

break_even: from how many tokens of a prompt on reuse is faster than a full prefill on a device. The
same model in another dtype has another signature, and so another calibration.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import Any

from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.support.atomic_files import read_file, write_output
from fusionrag_integrations.support.inputs import check_fields, parse_json


@dataclass(frozen=True, slots=True)
class Calibration:
    """How this package's selector weighs its signals for one model.

    layers: those whose attention is used, ascending. whole_sentences: whether each token gets the
    highest score of its sentence. sensitivity: the exponent of a trace's sensitivity; 0 ignores it.
    """

    layers: tuple[int, ...]
    whole_sentences: bool = False
    sensitivity: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.layers or list(self.layers) != sorted(set(self.layers)) or self.layers[0] < 0:
            raise InvalidInputError(f"Layers are {self.layers}; give some from 0 on, ascending.")
        if not 0.0 <= self.sensitivity < inf:
            raise InvalidInputError(
                f"sensitivity is {self.sensitivity}; it can't be negative, and must be finite."
            )


FORMAT = 1
MAX_BYTES = 1 << 26

_OTHER_ENTRIES = ("break_even", "measured")


def read_calibration(path: Path, signature: str) -> Calibration | None:
    """The calibration for a model; None where there is none. Raises `InvalidInputError`."""
    entry = _entries(path).get(signature)
    if entry is None:
        return None
    from pydantic import TypeAdapter  # slow to import, and not needed without a calibration

    try:
        fields = {name: value for name, value in entry.items() if name not in _OTHER_ENTRIES}
        return TypeAdapter(Calibration).validate_json(json.dumps(fields), strict=True)
    except (AttributeError, ValueError) as error:
        raise _damaged(path, error) from error


def read_break_even(path: Path, signature: str, device: str) -> int:
    """From how many tokens on reuse is faster for a model on a device; 0 if not measured.

    Raises `InvalidInputError` for a damaged file.
    """
    return _break_even(path, signature).get(device, 0)


def first_calibration(
    files: Iterable[Path], signature: str, model: str, layers: int
) -> Calibration | None:
    """The calibration for a model from the first file that has one.

    model: its name, for messages. layers: how many it has; `InvalidInputError` is raised for a
    calibration that names others.
    """
    for path in files:
        if found := read_calibration(path, signature):
            if found.layers[-1] >= layers:
                raise InvalidInputError(
                    f"The calibration {path} names layer {found.layers[-1]}; {model} has layers 0 "
                    f"to {layers - 1}. Delete it and calibrate again."
                )
            return found
    return None


def first_break_even(files: Iterable[Path], signature: str, device: str) -> int:
    """The result of `read_break_even` from the first file that has one."""
    return next(filter(None, (read_break_even(file, signature, device) for file in files)), 0)


def write_calibration(
    path: Path,
    signature: str,
    calibration: Calibration,
    measured: Mapping[str, Any],
    break_even: Mapping[str, int] | None = None,
) -> None:
    """Put a model's calibration into the file, keeping those of other models.

    measured: how it was found, for people to read. break_even: tokens by device; other devices'
    stay. Raises `InvalidInputError` where the file is damaged or can't be written.
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
        # The directory may be a link, as a store's may be; the file may not.
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
