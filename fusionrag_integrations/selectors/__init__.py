"""Which chunk tokens to recompute: one file a method, found here by name."""

from __future__ import annotations

from collections.abc import Callable

from fusionrag_integrations.errors import UnknownSelectorError
from fusionrag_integrations.selectors.all import SelectAll
from fusionrag_integrations.selectors.fusionrag import FusionRAGSelector
from fusionrag_integrations.selectors.none import SelectNone
from fusionrag_integrations.selectors.random import RandomSelector
from fusionrag_integrations.types import Selector

SelectorFactory = Callable[[float], Selector]

_FACTORIES: dict[str, SelectorFactory] = {
    "none": lambda ratio: SelectNone(),
    "all": lambda ratio: SelectAll(),
    "random": lambda ratio: RandomSelector(ratio),
    "fusionrag": lambda ratio: FusionRAGSelector(ratio),
}


def selector_names() -> tuple[str, ...]:
    """Every name that `make_selector` knows."""
    return tuple(_FACTORIES)


def make_selector(name: str, ratio: float) -> Selector:
    """A selector for `ratio` of the chunk tokens; raises `UnknownSelectorError`."""
    if name not in _FACTORIES:
        raise UnknownSelectorError(
            f"There is no selector {name!r}. Known selectors: {', '.join(_FACTORIES)}."
        )
    return _FACTORIES[name](ratio)
