"""What a selector may ask about a placed prompt.

Axes: Hq query heads, Hkv key/value heads, R rows, N tokens of the prompt, C chunk tokens,
D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from fusionrag_integrations.attention.spec import AttentionSpec

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, eq=False)
class LayerView:
    """The queries of some rows in one layer, and the keys of the prompt.

    queries: rotated, [Hq, R, D]. keys: rotated, [Hkv, N, D], by position. positions: of the rows,
    [R]; each attends to the keys up to its own position. spec: the layer's attention.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    positions: torch.Tensor
    spec: AttentionSpec

    @property
    def scaling(self) -> float:
        """What the layer multiplies QK by, usually 1/sqrt(D)."""
        return self.spec.scaling

    @property
    def window(self) -> int | None:
        """How many keys a row attends to, its own the last of them; None: all up to its own."""
        return self.spec.window

    def of_rows(self, rows: slice) -> LayerView:
        """The view of some of the rows."""
        return replace(self, queries=self.queries[:, rows], positions=self.positions[rows])

    @staticmethod
    def joined(views: Sequence[LayerView]) -> LayerView:
        """One view of what several show of a layer, whose rows are behind one another."""
        if len(views) == 1:
            return views[0]
        import torch

        queries = torch.cat([view.queries for view in views], dim=1)
        positions = torch.cat([view.positions for view in views])
        return replace(views[-1], queries=queries, positions=positions)


class Layered(Protocol):
    """A model's layers."""

    @property
    def num_layers(self) -> int: ...

    @property
    def global_layers(self) -> tuple[int, ...]:
        """Layers whose attention reaches the whole prompt, not only a window of it."""
        ...


class Probe(Layered, Protocol):
    """Signals about a placed prompt that a selector may ask for; computed on demand, and timed."""

    def suffix(self, layers: Sequence[int]) -> list[LayerView]:
        """Views of the tokens after the last chunk in these layers, over the placed KV.

        Runs the fresh tokens through the layers up to the last of these.
        """
        ...

    def watched_suffix(
        self, layers: Sequence[int], watched: Sequence[int]
    ) -> tuple[list[LayerView], torch.Tensor]:
        """Like `suffix`, and the deviation of some chunk tokens' placed KV in every layer that ran.

        watched: positions of chunk tokens, ascending, which run along with all separators.
        deviation: squared distance relative to the squared norm of the KV computed now, token by
        token, mean over keys and values, float32 [max(layers) + 1, len(watched)]. Layer 0 depends
        on no context.
        """
        ...

    def early_deviation(self) -> torch.Tensor:
        """Squared distance of each chunk token's true K and V from those placed, at layer 1.

        float32 [C], in the order of `chunk_positions`. Runs layers 0 and 1 over the whole prompt;
        what they compute is exact, and recomputation goes on from there.
        """
        ...
