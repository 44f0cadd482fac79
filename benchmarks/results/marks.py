"""A mark in a document: which view of which results belongs in its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Result = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Mark:
    """What belongs in one place: a view of results, and its options. words: as they are written."""

    words: tuple[str, ...]
    loaded: Mapping[str, Result]
    options: Mapping[str, str]

    @property
    def only(self) -> Result:
        """The one result that the view is of."""
        (result,) = self.loaded.values()
        return result

    @property
    def rows(self) -> list[Mapping[str, Any]]:
        """Those of the kind of question that is asked for."""
        return [row for row in self.only["rows"] if row["kind"] == self.options["kind"]]
