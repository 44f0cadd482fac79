"""What a run has measured so far, so that an interrupted one goes on from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fusionrag_integrations.bench.json_lines import append_lines, open_lines

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Value = TypeVar("Value", bound="DataclassInstance")

FORMAT = 1
"""Of the lines; a log in another format is of another run."""


class Kept:
    """Measurements by name, in memory or in a log: a file of JSON lines."""

    def __init__(self, log: Path | None, identity: Mapping[str, Any]) -> None:
        """identity: what is measured, and where; raises as `open_lines` does."""
        self._log = log
        self._rows: dict[str, Any] = {}
        if log is not None:
            self._rows.update(open_lines(log, dict(identity) | {"format": FORMAT}, _read))

    def once(self, name: str, measure: Callable[[], Value], of: Callable[[Any], Value]) -> Value:
        """What is kept by this name, else what is measured now, which is kept.

        of: makes it again of its plain values.
        """
        if name in self._rows:
            return of(self._rows[name])
        value = measure()
        if self._log is not None:
            append_lines(self._log, [{"name": name, "value": asdict(value)}])
        return value


def _read(line: Any) -> tuple[str, Any]:
    return line["name"], line["value"]
