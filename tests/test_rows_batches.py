"""A pass over rows of several requests, whatever kinds of KV they have, against each one alone."""

from __future__ import annotations

import pytest
import torch

from fusionrag_integrations.execution.buffer import KVBuffer, SequenceKV
from fusionrag_integrations.execution.executor import Executor, SequenceInput
from fusionrag_integrations.execution.observed import KV, ObservedKV
from fusionrag_integrations.execution.placement import (
    PromptKV,
    SharedChunks,
    place_in_buffer,
    to_resident,
)
from tests.test_gates import CHUNKS, isolated, model_of, prompt_of_chunks, varied_families

PROMPT = prompt_of_chunks()
FRESH = PROMPT.fresh_positions
EVERY = range(len(PROMPT))
CLOSE = {"rtol": 1e-4, "atol": 5e-5}


class Seen:
    """Notes what an observer is told, layer by layer."""

    def __init__(self) -> None:
        self.told: list[KV] = []

    def observe(self, buffer: KVBuffer, layer: int, placed: KV, computed: KV) -> None:
        assert layer == len(self.told) // 2
        self.told += [placed, (computed[0].clone(), computed[1].clone())]


def inputs(executor: Executor, seen: Seen) -> list[SequenceInput]:
    """Of every kind: in a buffer and in place, many rows and one, observed and not."""
    kvs = [isolated(executor.model, ids) for ids in CHUNKS]
    there = [to_resident(executor.model, kv) for kv in kvs]
    capacity = len(PROMPT) + 1

    def buffer() -> KVBuffer:
        placed = place_in_buffer(executor, PROMPT, kvs, capacity)
        with torch.inference_mode():
            placed.clear([*FRESH, len(PROMPT)])  # whose content is undefined
        return placed

    def in_place(chosen: int) -> SequenceKV:
        shared: PromptKV = SharedChunks(executor, PROMPT, there, capacity)
        own = sorted({*FRESH, *PROMPT.chunk_positions[::chosen], len(PROMPT)})
        return shared.with_private_tokens(own)

    def rows(positions: list[int] | range, kv: SequenceKV) -> SequenceInput:
        return SequenceInput([PROMPT.token_ids[p] for p in positions], positions, kv, last=1)

    watched = PROMPT.chunk_positions[3::6]
    observed = ObservedKV(buffer(), watched, seen)
    return [
        rows(sorted({*FRESH, *PROMPT.chunk_positions[::5]}), in_place(5)),
        rows(EVERY, buffer()),
        rows([FRESH[-1]], in_place(4)),
        rows(sorted({*FRESH, *watched}), observed),
        rows(sorted({*FRESH, *PROMPT.chunk_positions[::7]}), in_place(7)),
        rows([FRESH[-1]], buffer()),
        rows([FRESH[-1]], in_place(3)),
    ]


@varied_families
def test_all_kinds_in_one_pass_are_each_as_alone(family: str) -> None:
    executor = Executor(model_of(family))
    seen, seen_alone = Seen(), Seen()
    together, apart = inputs(executor, seen), inputs(executor, seen_alone)
    found = executor.run(together)
    for mine, one in zip(found, apart, strict=True):
        torch.testing.assert_close(mine, executor.run([one])[0], **CLOSE)
    assert len(seen.told) == len(seen_alone.told) == 2 * executor.model.kv_layers
    for mine_told, alone_told in zip(seen.told, seen_alone.told, strict=True):
        torch.testing.assert_close(mine_told, alone_told, **CLOSE)


@pytest.mark.parametrize("family", ["llama_gqa2", "gemma3"])
def test_order_in_a_pass_changes_nothing(family: str) -> None:
    executor = Executor(model_of(family))
    forwards = executor.run(inputs(executor, Seen()))
    backwards = executor.run(inputs(executor, Seen())[::-1])
    for mine, other in zip(forwards, backwards[::-1], strict=True):
        torch.testing.assert_close(mine, other, **CLOSE)
