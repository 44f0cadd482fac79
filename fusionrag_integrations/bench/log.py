"""A log of measurements: a strategy's measurement of a question a line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fusionrag_integrations.bench.closeness import Closeness
from fusionrag_integrations.bench.inspection import Inspection
from fusionrag_integrations.bench.json_lines import append_lines, open_lines
from fusionrag_integrations.bench.measurement import Measurement
from fusionrag_integrations.bench.strategies import Strategy

FORMAT = 3
"""Of the lines; a log in another format is of another run."""


Done = dict[int, dict[Strategy, Measurement]]
"""Measurements by question and strategy."""


def open_log(path: Path, identity: Mapping[str, Any]) -> Done:
    """What a log holds, whichever strategies were asked for; a log that isn't there is begun.

    Raises as `open_lines` does.
    """
    done: Done = {}
    for measurement in open_lines(path, dict(identity) | {"format": FORMAT}, _read):
        done.setdefault(measurement.question, {})[measurement.strategy] = measurement
    return done


def append(path: Path, measured: Iterable[Measurement]) -> None:
    """Add what was measured of a question at once; where a strategy is there, this one counts."""
    append_lines(path, map(asdict, measured))


def _read(row: Any) -> Measurement:
    look = row.pop("inspection")
    if look is not None:
        lists = {name: tuple(look[name]) for name in ("deviation", "places")}
        look = Inspection(**look | lists)
    strategy, closeness = Strategy(**row.pop("strategy")), Closeness(**row.pop("closeness"))
    return Measurement(strategy=strategy, closeness=closeness, inspection=look, **row)
