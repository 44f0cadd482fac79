"""Old names of renamed attributes, kept for one version."""

from __future__ import annotations

from typing import Any
from warnings import warn


class Renamed:
    """An attribute's old name, whose use warns. In a class: `old = Renamed("new")`."""

    def __init__(self, new: str) -> None:
        self._new = new

    def __set_name__(self, owner: type, name: str) -> None:
        self._old = name

    def __get__(self, instance: object, owner: type) -> Any:
        warn(f"{self._old} is called {self._new} now.", DeprecationWarning, stacklevel=2)
        return getattr(owner if instance is None else instance, self._new)
