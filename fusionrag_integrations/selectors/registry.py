"""Every selector by its name."""

from __future__ import annotations

from collections.abc import Callable

from fusionrag_integrations.selectors.all import SelectAll
from fusionrag_integrations.selectors.cache_craft import CacheCraft
from fusionrag_integrations.selectors.cacheblend import cacheblend
from fusionrag_integrations.selectors.epic import epic
from fusionrag_integrations.selectors.fusionrag import FusionRAGScorer
from fusionrag_integrations.selectors.fusionrag_paper import fusionrag_paper
from fusionrag_integrations.selectors.infoflow import infoflow
from fusionrag_integrations.selectors.none import SelectNone
from fusionrag_integrations.selectors.prophetkv import prophetkv
from fusionrag_integrations.selectors.random import random
from fusionrag_integrations.selectors.scoring import TopScores
from fusionrag_integrations.selectors.selection import Selector, check_selector
from fusionrag_integrations.store.calibration import Calibration

SelectorFactory = Callable[[float, Calibration | None], Selector]

_FACTORIES: dict[str, SelectorFactory] = {
    "none": lambda ratio, calibration: SelectNone(),
    "all": lambda ratio, calibration: SelectAll(),
    "random": lambda ratio, calibration: TopScores(ratio, random),
    "cacheblend": lambda ratio, calibration: TopScores(ratio, cacheblend),
    "cache_craft": lambda ratio, calibration: CacheCraft(ratio),
    "epic": lambda ratio, calibration: TopScores(ratio, epic),
    "fusionrag_paper": lambda ratio, calibration: TopScores(ratio, fusionrag_paper),
    "prophetkv": lambda ratio, calibration: TopScores(ratio, prophetkv),
    "infoflow": lambda ratio, calibration: TopScores(ratio, infoflow),
    "fusionrag": lambda ratio, calibration: TopScores(ratio, FusionRAGScorer(calibration)),
}


def selector_names() -> tuple[str, ...]:
    """Every name that `make_selector` knows."""
    return tuple(_FACTORIES)


def make_selector(name: str, ratio: float, calibration: Calibration | None = None) -> Selector:
    """A selector for `ratio` of the chunk tokens; raises `UnknownSelectorError`.

    calibration: measured for the model; only "fusionrag" uses it.
    """
    check_selector(name)
    return _FACTORIES[name](ratio, calibration)
