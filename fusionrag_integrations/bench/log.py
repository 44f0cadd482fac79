"""A log of measurements that an interrupted run goes on from.

It is a file of JSON lines: what is measured, then all strategies' measurements of a question at a
time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fusionrag_integrations.bench.closeness import Closeness
from fusionrag_integrations.bench.inspection import Inspection
from fusionrag_integrations.bench.measurement import Measurement
from fusionrag_integrations.bench.strategies import Strategy
from fusionrag_integrations.errors import InvalidInputError

FORMAT = 2
"""Of the lines; a log in another format is of another run."""


def open_log(
    path: Path, identity: Mapping[str, Any], strategies: Sequence[Strategy]
) -> dict[int, list[Measurement]]:
    """What a log holds, by question; a log that isn't there is begun.

    A line that an interruption cut is dropped, with the others of its question. Raises
    `InvalidInputError` for the log of another run.
    """
    described = {"format": FORMAT, "strategies": [asdict(strategy) for strategy in strategies]}
    head = json.dumps(dict(identity) | described, sort_keys=True)
    if not path.exists() or not path.read_text():
        _write(path, [head])
        return {}
    first, *lines = path.read_text().splitlines()
    if first != head:
        raise InvalidInputError(
            f"{path} is of another run: it says {first}, and this one is {head}. Give another "
            "directory, or the same model, data set, seed and strategies."
        )
    done: dict[int, list[Measurement]] = {}
    for measurement in _read(lines):
        done.setdefault(measurement.question, []).append(measurement)
    whole = {number: found for number, found in done.items() if len(found) == len(strategies)}
    kept = [json.dumps(asdict(m)) for found in whole.values() for m in found]
    _write(path, [head, *kept])
    return whole


def append(path: Path, measured: Sequence[Measurement]) -> None:
    """Add all of a question at once."""
    with path.open("a") as lines:
        lines.write("".join(json.dumps(asdict(m)) + "\n" for m in measured))


def _write(path: Path, lines: Sequence[str]) -> None:
    draft = path.with_suffix(".tmp")
    draft.write_text("\n".join(lines) + "\n")
    draft.replace(path)


def _read(lines: Sequence[str]) -> Iterator[Measurement]:
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            return
        look = row.pop("inspection")
        if look is not None:
            lists = {name: tuple(look[name]) for name in ("deviation", "places")}
            look = Inspection(**look | lists)
        strategy, closeness = Strategy(**row.pop("strategy")), Closeness(**row.pop("closeness"))
        yield Measurement(strategy=strategy, closeness=closeness, inspection=look, **row)
