"""Which chunk tokens to recompute.

registry.py                 every selector by its name
selection.py                `Selector` and its result, `TokenSelection`
scoring.py                  `TopScores`: a selector of the tokens with the highest scores
probe.py                    `Probe`: the signals that a selector may ask for
attention_weights.py        attention weights, from the queries and keys of a layer
sentences.py                which tokens are in the same sentence
all.py, none.py, random.py  the baselines
Every other file is one method.

To add one: write a scorer (as in cacheblend.py) or a selector (as in cache_craft.py) in a file of
its own, add its line to `_FACTORIES` in registry.py and its name to `SelectorName` in
selection.py, and test it in tests/selectors with scores worked out by hand. test_registry.py there
lists the names, and test_end_to_end.py runs every selector.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusionrag_integrations.support.lazy import resolve

if TYPE_CHECKING:
    from fusionrag_integrations.selectors.fusionrag import FusionRAGScorer
    from fusionrag_integrations.selectors.infoflow import middle_layers
    from fusionrag_integrations.selectors.registry import make_selector, selector_names
    from fusionrag_integrations.selectors.scoring import TopScores

_MODULE_OF = {
    "FusionRAGScorer": "selectors.fusionrag",
    "TopScores": "selectors.scoring",
    "make_selector": "selectors.registry",
    "middle_layers": "selectors.infoflow",
    "selector_names": "selectors.registry",
}

__all__ = ["FusionRAGScorer", "TopScores", "make_selector", "middle_layers", "selector_names"]


def __getattr__(name: str) -> Any:
    return resolve(__name__, _MODULE_OF, name)
