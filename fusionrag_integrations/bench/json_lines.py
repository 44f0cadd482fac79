"""A file of JSON lines, which an interrupted run goes on from and a later one may add to.

What is measured stands in its first line, then a value a line.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.support.atomic_files import check_output, write_output
from fusionrag_integrations.support.inputs import parse_json

Value = TypeVar("Value")


def open_lines(
    path: Path, identity: Mapping[str, Any], read: Callable[[Any], Value]
) -> list[Value]:
    """The values that a file holds; a file that isn't there is begun.

    read: makes a value of a line's JSON. A last line that an interruption cut is dropped. Raises
    `InvalidInputError` for the file of another run, and for one that is damaged.
    """
    head = json.dumps(dict(identity), sort_keys=True)
    text = _text(path)
    if not text:
        _write(path, [head])
        return []
    first, *lines = text.splitlines()
    if first != head:
        differences = _differences(first, parse_json(head))
        raise InvalidInputError(
            f"{path} is of another run: {differences}. Give another directory, or ask the same "
            "again."
        )
    values = list(_values(path, lines, read))
    _write(path, [head, *lines[: len(values)]])
    return values


def append_lines(path: Path, values: Iterable[Any]) -> None:
    """Add these at once, each as its line of JSON."""
    with path.open("a") as lines:  # a regular file since it was opened
        lines.write("".join(json.dumps(value) + "\n" for value in values))


def _write(path: Path, lines: Iterable[str]) -> None:
    write_output(path, ("\n".join(lines) + "\n").encode())


def _text(path: Path) -> str:
    """The file's text; none where it isn't there."""
    check_output(path)
    try:
        return path.read_text(encoding="utf-8") if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path} is damaged: {error}. Give another directory.") from error


def _differences(first: str, mine: Mapping[str, Any]) -> str:
    """What a file says of its run, where this run's is another."""
    try:
        theirs = dict(parse_json(first))
    except (TypeError, ValueError):
        return f"it begins with {first!r}"
    names = sorted(n for n in theirs.keys() | mine.keys() if theirs.get(n) != mine.get(n))
    return ", ".join(
        f"its {name} is {theirs.get(name)!r}, and here it is {mine.get(name)!r}" for name in names
    )


def _values(path: Path, lines: Sequence[str], read: Callable[[Any], Value]) -> Iterator[Value]:
    for number, line in enumerate(lines, start=2):
        try:
            value = read(parse_json(line))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if number == len(lines) + 1 and isinstance(error, json.JSONDecodeError):
                return
            raise InvalidInputError(
                f"{path} is damaged: line {number} is no measurement ({error!r}). Delete the line, "
                "and what it held is asked again."
            ) from error
        yield value
