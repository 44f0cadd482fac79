"""Each selector against what its definition says, computed another way."""

from __future__ import annotations

import math
import random

import pytest
import torch

from fusionrag_integrations.errors import UnknownSelectorError
from fusionrag_integrations.selectors import make_selector, selector_names
from fusionrag_integrations.selectors.fusionrag import FusionRAGSelector
from fusionrag_integrations.types import (
    AssembledPrompt,
    Chunk,
    ChunkRecord,
    EncodedChunk,
    Span,
)


def prompt_with(spans: list[tuple[str, int, int, int]], length: int) -> AssembledPrompt:
    """Spans of (chunk id, source start, start, length); the last three tokens are the question."""
    made = []
    for name, source, start, count in spans:
        chunk = Chunk(id=name, document_id="d", index=0, text="x")
        ids = tuple(range(100))
        encoded = EncodedChunk(chunk, ids, tuple((i, i + 1) for i in ids))
        made.append(Span(ChunkRecord(encoded, "00"), "isolated", source, start, count))
    return AssembledPrompt(tuple(range(length)), tuple(made), (length - 3, length))


class FakeProbe:
    """Random queries and keys; only the last layer may be asked for."""

    num_layers = 4

    def __init__(self, length: int, query_heads: int = 4, heads: int = 2, size: int = 8) -> None:
        torch.manual_seed(0)
        self.queries = torch.randn(query_heads, 3, size) * 3
        self.keys = torch.randn(heads, length, size)

    def question_queries(self, layer: int) -> torch.Tensor:
        assert layer == 3
        return self.queries

    def placed_keys(self, layer: int) -> torch.Tensor:
        assert layer == 3
        return self.keys

    def scaling(self, layer: int) -> float:
        return 1 / math.sqrt(8)


PROMPT = prompt_with([("a", 0, 2, 10), ("b", 0, 14, 7), ("c", 1, 22, 3)], 30)


def test_names_and_unknown_names() -> None:
    assert selector_names() == ("none", "all", "random", "fusionrag")
    with pytest.raises(UnknownSelectorError, match="none, all, random, fusionrag"):
        make_selector("best", 0.1)


def test_none_and_all() -> None:
    probe = FakeProbe(30)
    assert make_selector("none", 0.5).select(PROMPT, probe).positions == ()
    assert make_selector("all", 0.5).select(PROMPT, probe).positions == (
        *range(2, 12),
        *range(14, 21),
        *range(22, 25),
    )


@pytest.mark.parametrize("name", ["random", "fusionrag"])
@pytest.mark.parametrize(("ratio", "count"), [(0.0, 0), (0.04, 0), (0.15, 3), (0.5, 10), (1.0, 20)])
def test_never_more_than_the_ratio(name: str, ratio: float, count: int) -> None:
    positions = make_selector(name, ratio).select(PROMPT, FakeProbe(30)).positions
    assert len(positions) == count
    assert set(positions) <= set(PROMPT.chunk_positions)


def test_random_repeats_itself_and_differs_between_prompts() -> None:
    selector, probe = make_selector("random", 0.5), FakeProbe(40)
    assert selector.select(PROMPT, probe) == selector.select(PROMPT, probe)
    draws = {
        selector.select(prompt_with([("a", 0, 2, 20)], n), probe).positions for n in range(30, 40)
    }
    assert len(draws) > 5


def test_paper_scores_against_a_loop_from_the_formula() -> None:
    prompt = prompt_with([("a", 0, 2, 4), ("a", 5, 7, 3), ("b", 0, 14, 7), ("a", 0, 22, 3)], 30)
    probe = FakeProbe(30)
    # Two runs of one occurrence of chunk a share a softmax; its second occurrence has its own.
    occurrences = [[2, 3, 4, 5, 7, 8, 9], list(range(14, 21)), [22, 23, 24]]
    expected = {}
    for positions in occurrences:
        for head in range(4):
            for query in range(3):
                key = probe.keys[head // 2]
                logits = [
                    float(probe.queries[head, query] @ key[p]) / math.sqrt(8) for p in positions
                ]
                total = sum(math.exp(x) for x in logits)
                for p, x in zip(positions, logits, strict=True):
                    expected[p] = expected.get(p, 0.0) + math.exp(x) / total
    scores = FusionRAGSelector(0.3).scores(prompt, probe)
    assert scores.tolist() == pytest.approx([expected[p] for p in prompt.chunk_positions], rel=1e-4)
    chosen = FusionRAGSelector(0.3).select(prompt, probe).positions
    best = sorted(expected, key=lambda p: -expected[p])[: int(0.3 * 17)]
    assert chosen == tuple(sorted(best))


def test_positions_are_ascending_whatever_the_scores() -> None:
    random.seed(0)
    positions = make_selector("fusionrag", 0.6).select(PROMPT, FakeProbe(30)).positions
    assert list(positions) == sorted(set(positions))
