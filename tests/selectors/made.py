"""Made-up chunks, prompts and probes, and the attention that a probe's layers give, by loops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch

from fusionrag_integrations.attention.spec import AttentionSpec
from fusionrag_integrations.documents.chunk_record import ChunkRecord, ContextTrace, EncodedChunk
from fusionrag_integrations.documents.handles import KVKind
from fusionrag_integrations.documents.types import Chunk
from fusionrag_integrations.prompt.assembled import AssembledPrompt, Span
from fusionrag_integrations.selectors.probe import LayerView

Rows = list[list[list[float]]]
"""By head, row and key."""


def known(name: str, pieces: int | Sequence[str], trace: ContextTrace | None = None) -> ChunkRecord:
    """A chunk with its tokens' texts, or with a number of one-letter tokens."""
    texts = ["x"] * pieces if isinstance(pieces, int) else list(pieces)
    ends = list(accumulate(map(len, texts)))
    offsets = tuple(zip([0, *ends], ends, strict=False))
    chunk = Chunk(id=name, document_id="d", index=0, text="".join(texts))
    ids = tuple(range(len(texts)))
    return ChunkRecord(EncodedChunk(chunk, ids, offsets), f"iso-{name}", trace=trace)


def traced(
    sensitivity: Sequence[float], outside: Sequence[float] | None = None, **changes: object
) -> ContextTrace:
    """A trace of a chunk of which only some numbers matter."""
    plain = {
        "sensitivity": tuple(sensitivity),
        "outside": tuple(outside or [0.0] * len(sensitivity)),
        "inside": (1.0,) * len(sensitivity),
        "neighbours": (),
        "by_neighbour": (),
        "neighbour_tokens": 0,
    }
    return ContextTrace(**(plain | changes))  # type: ignore[arg-type]


def prompt_with(
    runs: Sequence[tuple[ChunkRecord, int, int, int]],
    length: int,
    question: tuple[int, int] | None = None,
    variant: KVKind = "isolated",
) -> AssembledPrompt:
    """Runs of (chunk, source start, start, length); the question is all behind the last one."""
    spans = tuple(Span(record, variant, *where) for record, *where in runs)
    return AssembledPrompt(tuple(range(length)), spans, question or (spans[-1].stop, length))


@dataclass
class FakeProbe:
    """Random queries and keys of a model whose layers see all or, but for some, only a window.

    It notes what it is asked for.
    """

    prompt: AssembledPrompt
    num_layers: int = 6
    global_layers: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    window: int = 9
    deviation: torch.Tensor | None = None
    asked: list[tuple[int, ...]] = field(default_factory=list)
    watched: list[int] = field(default_factory=list)
    heads, kv_heads, size, scaling = 4, 2, 8, 0.31  # not 1/sqrt(8), which is 0.354

    @property
    def rows(self) -> list[int]:
        return list(range(self.prompt.spans[-1].stop, len(self.prompt)))

    def tensors(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries [Hq, R, D] and keys [Hkv, N, D]."""
        draw = torch.Generator().manual_seed(layer)
        queries = torch.randn(self.heads, len(self.rows), self.size, generator=draw) * 3
        return queries, torch.randn(self.kv_heads, len(self.prompt), self.size, generator=draw)

    def sees(self, layer: int, row: int, position: int) -> bool:
        reach = len(self.prompt) if layer in self.global_layers else self.window
        return row - reach < position <= row

    def suffix(self, layers: Sequence[int]) -> list[LayerView]:
        self.asked.append(tuple(layers))
        return [
            LayerView(
                *self.tensors(layer),
                torch.tensor(self.rows),
                AttentionSpec(self.scaling, None if layer in self.global_layers else self.window),
            )
            for layer in layers
        ]

    def off(self, layer: int, position: int) -> float:
        """How far a token's placed KV is off in a layer; by nothing but rounding in the first."""
        return 1e-15 * position if layer == 0 else 0.1 + (7 * layer + 3 * position) % 11

    def watched_suffix(
        self, layers: Sequence[int], watched: Sequence[int]
    ) -> tuple[list[LayerView], torch.Tensor]:
        self.watched = list(watched)
        ran = range(max(layers) + 1)
        off = [[self.off(layer, position) for position in watched] for layer in ran]
        return self.suffix(layers), torch.tensor(off)

    def early_deviation(self) -> torch.Tensor:
        assert self.deviation is not None
        return self.deviation

    def logits(self, layer: int) -> Rows:
        """QK times the scaling, by loops; two query heads share a key head."""
        queries, keys = (t.tolist() for t in self.tensors(layer))
        return [
            [
                [self.scaling * sum(map(math.prod, zip(q, k, strict=True))) for k in keys[h // 2]]
                for q in queries[h]
            ]
            for h in range(self.heads)
        ]

    def attention(self, layer: int) -> Rows:
        """Softmax over all that a row sees, by loops."""
        weights = []
        for head in self.logits(layer):
            weights.append([])
            for row, given in zip(self.rows, head, strict=True):
                powers = [
                    math.exp(x) if self.sees(layer, row, p) else 0.0 for p, x in enumerate(given)
                ]
                weights[-1].append([power / sum(powers) for power in powers])
        return weights


def best(scores: dict[int, float], count: int) -> tuple[int, ...]:
    """The positions with the highest scores, ascending."""
    return tuple(sorted(sorted(scores, key=lambda p: -scores[p])[:count]))
