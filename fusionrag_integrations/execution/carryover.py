"""What recomputed tokens turn out to be off by, carried over to the others of their chunk.

A chunk's KV is stale since other text stands before it now, and what that changes is much alike in
tokens that stand near each other. Recompute shows it for the selected tokens, layer by layer, just
before the layer's attention reads the rest:

true - placed KV of the selected --weighted by nearness--> added to the placed KV of the rest

The weighted mean of Nadaraya (1964) and Watson (1964), over keys in the canonical frame and values:

off(j) = sum_i w(i, j) off(i) / (1 + sum_i w(i, j))
w(i, j) = NEAR / (NEAR + |i - j|) / (1 + (|off of i's key| / |i's placed key| / CHANGED)^2)

over the selected tokens i of j's chunk but its first two. The 1 is an observation of no change at j
itself: where little was recomputed nearby, KV stays as it was placed. What that gives is in
docs/selectors.md.

The second factor, of each head by itself, makes the mean robust (Cauchy's weights: Holland and
Welsch, 1977): a token whose key has changed by much of its length means something else now, which
says nothing of its neighbours.

Keys by which a head finds what stood behind a word before (induction heads: Olsson et al., 2022)
say which token stands right before theirs. Where a chunk begins that is another one now; the rest
of the chunk stands behind the tokens that it always stood behind.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from fusionrag_integrations.attention.rope import rotate
from fusionrag_integrations.execution.buffer import KVBuffer
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.execution.observed import KV
from fusionrag_integrations.prompt.assembled import AssembledPrompt
from fusionrag_integrations.selectors.selection import TokenSelection

NEAR = 3
"""Tokens: at this distance what a token is off by counts half."""

CHANGED = 0.3
"""Of a key's length: a token whose key is off by so much counts half."""

FIRST = 2
"""Tokens that a chunk begins with, which nothing is carried from."""

_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, slots=True)
class CarriedChunk:
    """Positions of a chunk's tokens. given: of the selected less its first; others: not selected.

    selected: from the first selected one to the last; what they are off by is carried over at once.
    """

    given: list[int]
    others: list[int]
    selected: range

    @classmethod
    def all_of(cls, prompt: AssembledPrompt, selection: TokenSelection) -> list[CarriedChunk]:
        """The chunks of a prompt that have both."""
        chosen = set(selection.positions)
        chunks: list[CarriedChunk] = []
        for positions in prompt.positions_by_chunk:
            given = [p for p in positions[FIRST:] if p in chosen]
            others = [p for p in positions if p not in chosen]
            if given and others:
                first = next(p for p in positions if p in chosen)
                chunks.append(cls(given, others, range(first, given[-1] + 1)))
        return chunks


class Carryover:
    """From selected tokens to the others of their chunks.

    It observes the pass that recomputes the selected tokens.

    positions: of those that are carried from. rest: of those that are not selected, int64 on the
    model's device. In both, chunks of about as many selected tokens come together: few have most of
    them.
    """

    def __init__(self, model: CausalModel, chunks: Sequence[CarriedChunk]) -> None:
        """chunks: at least one."""
        by_given: defaultdict[int, list[CarriedChunk]] = defaultdict(list)
        for chunk in chunks:
            by_given[len(chunk.given).bit_length()].append(chunk)
        alike = list(by_given.values())
        self._alike = [_Alike(group, model.device) for group in alike]
        self.positions = tuple(p for group in alike for chunk in group for p in chunk.given)
        rest = [p for group in alike for chunk in group for p in chunk.others]
        self.rest = torch.tensor(rest, device=model.device)
        self._back = model.rotation(self.positions).inverse()
        self._forth = model.rotation(self.rest)

    def observe(self, buffer: KVBuffer, layer: int, placed: KV, computed: KV) -> None:
        """Add to the rest of a layer what the selected tokens, written just now, are off by."""
        old, new = ([t.float() for t in kv] for kv in (placed, computed))
        keys, values = (n - o for n, o in zip(new, old, strict=True))
        change = keys.square().sum(2) / old[0].square().sum(2).clamp(min=_TINY)
        steady = 1.0 / (1.0 + change / CHANGED**2)
        carried = self.to_rest(layer, keys, values, steady)
        for slots, more in zip(buffer.layer(layer), carried, strict=True):
            slots.index_add_(1, self.rest, more.to(slots.dtype))

    def to_rest(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor, steady: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What to add to the rest's rotated keys and values in a layer, float32 [Hkv, rest, D].

        keys, values: what the selected tokens' are off by, float32 [Hkv, selected, D]. steady: what
        each of them counts, nearness apart, float32 [Hkv, selected].
        """
        here = slice(layer, layer + 1)
        heads, _, size = keys.shape
        still = rotate(keys[None], self._back.of_layers(here))[0]
        counted = steady[..., None]
        weighted = torch.cat([still * counted, values * counted, counted], 2)
        sums = self._sums(weighted.transpose(0, 1).flatten(1)).view(-1, heads, weighted.shape[2])
        carried = (sums[..., :-1] / (1.0 + sums[..., -1:])).transpose(0, 1)
        still, more = carried[..., :size], carried[..., size:]
        return rotate(still[None], self._forth.of_layers(here))[0], more

    def _sums(self, weighted: torch.Tensor) -> torch.Tensor:
        """For each of the rest, over its chunk's selected tokens, by nearness.

        weighted: float32 [selected, width]. Returns float32 [rest, width].
        """
        sums: list[torch.Tensor] = []
        start = 0
        for alike in self._alike:
            sums.append(alike.sums(weighted[start : start + alike.selected]))
            start += alike.selected
        return torch.cat(sums)


class _Alike:
    """Chunks padded to stand side by side; none has twice as many selected tokens as another.

    selected: how many tokens are carried from.
    """

    def __init__(self, chunks: Sequence[CarriedChunk], device: torch.device) -> None:
        sources, targets = (
            pad_sequence([torch.tensor(p) for p in one], batch_first=True, padding_value=-1)
            for one in ([chunk.given for chunk in chunks], [chunk.others for chunk in chunks])
        )
        distance = (targets[:, :, None].float() - sources[:, None].float()).abs()
        self._nearness = (NEAR / (NEAR + distance)).to(device)  # [chunks, most rest, most selected]
        self._sources = (sources.flatten() >= 0).nonzero()[:, 0].to(device)
        self._targets = (targets.flatten() >= 0).nonzero()[:, 0].to(device)
        self.selected = len(self._sources)

    def sums(self, weighted: torch.Tensor) -> torch.Tensor:
        """As `Carryover` has them, of these chunks."""
        chunks, _, most = self._nearness.shape
        padded = weighted.new_zeros(chunks * most, weighted.shape[1])
        padded[self._sources] = weighted
        of_all = torch.bmm(self._nearness, padded.view(chunks, most, -1))
        return of_all.flatten(0, 1)[self._targets]
