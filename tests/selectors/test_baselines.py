"""EPIC, random and CacheBlend: by hand, by counting, and from a dense model."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from fusionrag_integrations.execution.executor import Executor
from fusionrag_integrations.execution.placement import place_in_buffer
from fusionrag_integrations.execution.recompute import PlacedPrompt
from fusionrag_integrations.prompt.assembled import AssembledPrompt
from fusionrag_integrations.selectors import make_selector
from tests.selectors.made import FakeProbe, known, prompt_with
from tests.test_gates import CHUNKS, PREFIX, isolated, model_of, prompt_of_chunks, reference_of

TWO, FIVE, THREE = known("two", 2), known("five", 5), known("three", 3)
UNEVEN = prompt_with([(TWO, 0, 1, 2), (FIVE, 0, 4, 5), (THREE, 0, 10, 3)], 16)


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (1, (1,)),
        (2, (1, 4)),
        (3, (1, 4, 10)),  # the first of each
        (5, (1, 2, 4, 5, 10)),  # what is left over goes to the first chunks
        (6, (1, 2, 4, 5, 10, 11)),
        (7, (1, 2, 4, 5, 6, 10, 11)),  # the shortest has no third
        (8, (1, 2, 4, 5, 6, 10, 11, 12)),
        (9, (1, 2, 4, 5, 6, 7, 10, 11, 12)),
    ],
)
def test_epic_by_hand(budget: int, expected: tuple[int, ...]) -> None:
    assert make_selector("epic", (budget + 0.5) / 10).select(UNEVEN, None).positions == expected


def test_epic_counts_on_across_the_runs_of_a_chunk() -> None:
    """five in two runs without its third token, then five again: four and five tokens."""
    runs = [(FIVE, 0, 1, 2), (FIVE, 3, 4, 2), (FIVE, 0, 8, 5)]
    prompt = prompt_with(runs, 20)
    chosen = [
        make_selector("epic", (n + 0.5) / 9).select(prompt, None).positions for n in range(1, 9)
    ]
    order = [1, 8, 2, 9, 4, 10, 5, 11]
    assert chosen == [tuple(sorted(order[:n])) for n in range(1, 9)]


def test_epic_is_taking_turns() -> None:
    """As dealing one token after another from each chunk's beginning, for many sizes."""
    sizes = [7, 1, 12, 3, 3, 30, 5]
    runs, at = [], 2
    for i, size in enumerate(sizes):
        runs.append((known(f"c{i}", size), 0, at, size))
        at += size + i % 2
    prompt = prompt_with(runs, at + 5)
    hands = [list(range(start, start + size)) for _, _, start, size in runs]
    dealt = [hand[k] for k in range(30) for hand in hands if k < len(hand)]
    for budget in (4, 9, 20, 33, 60):
        positions = make_selector("epic", (budget + 0.5) / 61).select(prompt, None).positions
        assert positions == tuple(sorted(dealt[:budget]))


def drawn(prompt: AssembledPrompt, ratio: float = 0.25) -> tuple[int, ...]:
    return make_selector("random", ratio).select(prompt, None).positions


def numbered(number: int) -> AssembledPrompt:
    prompt = prompt_with([(known("c", 20), 0, 3, 20)], 30)
    return replace(prompt, token_ids=(number, *prompt.token_ids[1:]))


def test_random_repeats_itself_and_differs_between_prompts() -> None:
    assert drawn(numbered(1)) == drawn(numbered(1))
    assert len({drawn(numbered(i)) for i in range(40)}) > 35


def test_random_takes_no_notice_of_the_callers_generator() -> None:
    torch.manual_seed(1)
    first, state = drawn(numbered(1)), torch.get_rng_state()
    torch.manual_seed(2)
    assert drawn(numbered(1)) == first
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_random_is_roughly_uniform() -> None:
    prompts = 600
    counts = Counter(p for i in range(prompts) for p in drawn(numbered(i)))
    expected, spread = prompts / 4, math.sqrt(prompts / 4 * 3 / 4)
    assert set(counts) == set(range(3, 23))
    assert all(abs(count - expected) < 4.5 * spread for count in counts.values())
    pairs = Counter(3 in chosen and 4 in chosen for chosen in map(drawn, map(numbered, range(600))))
    assert 10 < pairs[True] < 60  # 600 x 1/4 x 4/19 is 32: neighbours are drawn apart


@pytest.mark.parametrize("family", ["llama_gqa2", "qwen3", "gemma3", "phi3_partial"])
@pytest.mark.parametrize("ratio", [0.1, 0.4])
def test_cacheblend_takes_what_a_dense_model_says_has_moved(family: str, ratio: float) -> None:
    """Layer 1 of the dense prompt against layer 1 of each chunk behind the ingest prefix."""
    model, reference, prompt = model_of(family), reference_of(family), prompt_of_chunks()
    executor = Executor(model)
    _, dense = reference.dense(prompt.token_ids)
    moved: dict[int, float] = {}
    for span, ids in zip(prompt.spans, CHUNKS, strict=True):
        alone = reference.isolated(PREFIX, ids, span.start - span.source_start)
        for i in range(span.length):
            moved[span.start + i] = sum(
                float(a - b) ** 2
                for now, then in zip(dense, alone, strict=True)
                for a, b in zip(
                    now[1, :, span.start + i].flatten(),
                    then[1, :, span.source_start + i].flatten(),
                    strict=True,
                )
            )
    kvs = [isolated(model, ids) for ids in CHUNKS]
    placed = PlacedPrompt(executor, prompt, place_in_buffer(executor, prompt, kvs, len(prompt)))
    chosen = make_selector("cacheblend", ratio).select(prompt, placed).positions
    count = int(ratio * len(moved))
    assert chosen == tuple(sorted(sorted(moved, key=lambda p: -moved[p])[:count]))
    assert placed.token_layers == 2 * len(prompt)  # the early layers are charged


def test_cacheblend_goes_by_the_probes_numbers() -> None:
    scores = torch.tensor([0.3, 0.1, 0.9, 0.2, 0.8, 0.0, 0.7, 0.6, 0.5, 0.4])
    probe = FakeProbe(UNEVEN, deviation=scores)
    assert make_selector("cacheblend", 0.3).select(UNEVEN, probe).positions == (4, 6, 8)
    assert probe.asked == []
