"""An engine over a few chunks, and requests over them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.bench.throughput.load import Ask, TokenTimes, closed_loop
from fusionrag_integrations.bench.throughput.plan import Plan
from fusionrag_integrations.bench.throughput.systems import System, answers_of
from fusionrag_integrations.bench.throughput.workload import Asked, Workload
from tests.conftest import town

TOKENS = 4


def plan(**changes: Any) -> Plan:
    small = {"ratios": (0.15,), "clients": (1, 2), "shares": (0.5,), "requests": 4, "chunks": 20}
    return Plan(**(small | {"prompt_tokens": 400, "output_tokens": TOKENS} | changes))


@pytest.fixture(scope="module")
def towns(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FusionEngine]:
    """An engine with twelve chunks, whose answers have `TOKENS`."""
    store = tmp_path_factory.mktemp("throughput") / "store"
    with FusionEngine.from_pretrained(model_dir, store=store, chunk_tokens=48) as engine:
        engine.ingest([town(number) for number in range(4)])
        with answers_of(engine.model, TOKENS):
            yield engine


@pytest.fixture(scope="module")
def requests(towns: FusionEngine) -> list[Asked]:
    return Workload(towns, plan()).requests(6, 1)


def answers_by(system: System, requests: Sequence[Asked], clients: int) -> list[list[int]]:
    """What it answers to each, asked by so many clients; each token had a time."""
    answers: dict[tuple[int, ...], list[int]] = {}
    times: list[TokenTimes] = []

    def kept(ask: Ask) -> Ask:
        def watched(asked: Asked, its: TokenTimes) -> Sequence[int]:
            answers[asked.token_ids] = list(ask(asked, its))
            times.append(its)
            return answers[asked.token_ids]

        return watched

    with system.serve() as ask:
        outcome = closed_loop(kept(ask), requests, TOKENS, clients)
    assert outcome.errors == ()
    assert all(sorted(its.at) == its.at for its in times)
    return [answers[asked.token_ids] for asked in requests]
