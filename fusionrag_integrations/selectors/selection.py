"""What a selector is, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from fusionrag_integrations.errors import InvalidInputError, UnknownSelectorError
from fusionrag_integrations.prompt.assembled import AssembledPrompt
from fusionrag_integrations.selectors.probe import Probe

SelectorName = Literal[
    "none",
    "all",
    "random",
    "cacheblend",
    "cache_craft",
    "epic",
    "fusionrag_paper",
    "prophetkv",
    "infoflow",
    "fusionrag",
]


@dataclass(frozen=True, slots=True)
class TokenSelection:
    """Chunk positions to recompute, ascending and without repeats."""

    positions: tuple[int, ...]

    def __post_init__(self) -> None:
        if any(b <= a for a, b in zip(self.positions, self.positions[1:], strict=False)):
            raise InvalidInputError("Selected positions must be ascending, without repeats.")

    def __len__(self) -> int:
        return len(self.positions)


class Selector(Protocol):
    """Chooses the chunk tokens to recompute. One method, no state between calls."""

    def select(self, prompt: AssembledPrompt, probe: Probe) -> TokenSelection:
        """The tokens to recompute, at most as many as its ratio allows."""
        ...


def check_selector(name: str) -> None:
    """Raises `UnknownSelectorError` for an unknown name."""
    if name not in get_args(SelectorName):
        raise UnknownSelectorError(
            f"There is no selector {name!r}. Known selectors: {', '.join(get_args(SelectorName))}."
        )
