"""A log of measurements, which an interrupted run goes on from and a later one may add to.

It is a file of JSON lines: what is measured, then a strategy's measurement of a question a line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fusionrag_integrations.bench.closeness import Closeness
from fusionrag_integrations.bench.inspection import Inspection
from fusionrag_integrations.bench.measurement import Measurement
from fusionrag_integrations.bench.strategies import Strategy
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.support.atomic_files import check_output, write_output
from fusionrag_integrations.support.inputs import parse_json

FORMAT = 3
"""Of the lines; a log in another format is of another run."""


Done = dict[int, dict[Strategy, Measurement]]
"""Measurements by question and strategy."""


def open_log(path: Path, identity: Mapping[str, Any]) -> Done:
    """What a log holds, whichever strategies were asked for; a log that isn't there is begun.

    A last line that an interruption cut is dropped. Raises `InvalidInputError` for the log of
    another run, and for one that is damaged.
    """
    mine = dict(identity) | {"format": FORMAT}
    head = json.dumps(mine, sort_keys=True)
    text = _text(path)
    if not text:
        _write(path, [head])
        return {}
    first, *lines = text.splitlines()
    if first != head:
        raise InvalidInputError(
            f"{path} is of another run: {_differences(first, mine)}. Give another directory, or "
            "ask the same again."
        )
    done: Done = {}
    for measurement in _read(path, lines):
        done.setdefault(measurement.question, {})[measurement.strategy] = measurement
    _write(path, [head, *(json.dumps(asdict(m)) for held in done.values() for m in held.values())])
    return done


def append(path: Path, measured: Iterable[Measurement]) -> None:
    """Add what was measured of a question at once; where a strategy is there, this one counts."""
    with path.open("a") as lines:  # a regular file since the log was opened
        lines.write("".join(json.dumps(asdict(m)) + "\n" for m in measured))


def _write(path: Path, lines: Iterable[str]) -> None:
    write_output(path, ("\n".join(lines) + "\n").encode())


def _text(path: Path) -> str:
    """The log's text; none where it isn't there."""
    check_output(path)
    try:
        return path.read_text(encoding="utf-8") if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path} is damaged: {error}. Give another directory.") from error


def _differences(first: str, mine: Mapping[str, Any]) -> str:
    """What a log says of its run, where this run's is another."""
    try:
        theirs = dict(parse_json(first))
    except (TypeError, ValueError):
        return f"it begins with {first!r}"
    names = sorted(n for n in theirs.keys() | mine.keys() if theirs.get(n) != mine.get(n))
    return ", ".join(
        f"its {name} is {theirs.get(name)!r}, and here it is {mine.get(name)!r}" for name in names
    )


def _read(path: Path, lines: Sequence[str]) -> Iterator[Measurement]:
    for number, line in enumerate(lines, start=2):
        try:
            row = parse_json(line)
            look = row.pop("inspection")
            if look is not None:
                lists = {name: tuple(look[name]) for name in ("deviation", "places")}
                look = Inspection(**look | lists)
            strategy, closeness = Strategy(**row.pop("strategy")), Closeness(**row.pop("closeness"))
            measurement = Measurement(
                strategy=strategy, closeness=closeness, inspection=look, **row
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if number == len(lines) + 1 and isinstance(error, json.JSONDecodeError):
                return
            raise InvalidInputError(
                f"{path} is damaged: line {number} is no measurement ({error!r}). Delete the line, "
                "and what it held is asked again."
            ) from error
        yield measurement
