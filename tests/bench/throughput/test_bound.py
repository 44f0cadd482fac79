"""What the engine's own work allows, and one request by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from math import ceil
from pathlib import Path
from typing import Any

import pytest
import torch

from fusionrag_integrations import AnswerSettings, FusionEngine
from fusionrag_integrations.bench.throughput.bound import Bound, measure_bound
from fusionrag_integrations.bench.throughput.one_request import prefill_alone
from fusionrag_integrations.bench.throughput.workload import Asked
from fusionrag_integrations.errors import PromptTooLongError
from fusionrag_integrations.execution.executor import Executor
from fusionrag_integrations.execution.steps import DecodeRow
from fusionrag_integrations.serving.pipeline import Pipeline
from fusionrag_integrations.serving.request import Request, Stage
from fusionrag_integrations.store.kv.disk_budget import Budgets
from tests.bench.throughput.conftest import TOKENS
from tests.conftest import town


def bound_of(engine: FusionEngine, asked: list[Asked], tokens: int = TOKENS) -> Bound:
    return measure_bound(engine, 0.15, 3.0, asked, tokens)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[list[DecodeRow]]:
    """The rows of each decode step."""
    seen: list[list[DecodeRow]] = []
    decode = Executor.decode

    def watched(executor: Executor, rows: Sequence[DecodeRow]) -> torch.Tensor:
        seen.append(list(rows))
        return decode(executor, rows)

    monkeypatch.setattr(Executor, "decode", watched)
    return seen


@pytest.fixture
def narrow(towns: FusionEngine, requests: list[Asked], tmp_path: Path) -> Iterator[FusionEngine]:
    """An engine with room for two of the requests at once."""
    longest = max(len(asked.token_ids) for asked in requests) + TOKENS
    budgets = Budgets(requests=round(2.5 * longest * towns.model.kv_bytes))
    with FusionEngine.open(
        towns.model, tmp_path / "store", chunk_tokens=48, budgets=budgets
    ) as engine:
        engine.ingest([town(number) for number in range(4)])
        yield engine


class TestBound:
    def test_it_follows_from_prefill_and_steps(
        self, towns: FusionEngine, requests: list[Asked]
    ) -> None:
        bound = bound_of(towns, requests)
        assert (bound.ratio, bound.clients, len(requests)) == (0.15, 6, 6)
        assert min(bound.step_ms, bound.prefill_ms) > 0.0
        seconds = (bound.prefill_ms + (TOKENS - 1) / 6 * bound.step_ms) / 1000
        assert bound.requests_per_s == pytest.approx(1 / seconds)
        assert bound.reached == pytest.approx(3.0 / bound.requests_per_s)

    def test_a_step_is_of_all_clients_each_behind_its_prompt(
        self, towns: FusionEngine, requests: list[Asked], steps: list[list[DecodeRow]]
    ) -> None:
        bound_of(towns, requests)
        assert len(steps) > 3
        positions = [len(asked.token_ids) for asked in requests]
        for rows in steps:  # and no prefill has decoded
            assert [row.position for row in rows] == positions
            assert len({id(row.kv) for row in rows}) == 6

    def test_a_step_is_of_as_many_as_the_engine_lets_in(
        self, narrow: FusionEngine, requests: list[Asked], steps: list[list[DecodeRow]]
    ) -> None:
        assert bound_of(narrow, requests).clients == 2
        assert {len(rows) for rows in steps} == {2}

    def test_all_requests_are_over_afterwards(
        self, towns: FusionEngine, requests: list[Asked], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made: list[Request] = []
        begin = Pipeline.request

        def watched(pipeline: Pipeline, *given: Any) -> Request:
            made.append(begin(pipeline, *given))
            return made[-1]

        monkeypatch.setattr(Pipeline, "request", watched)
        bound_of(towns, requests)
        assert len(made) > len(requests)
        assert all(request.over for request in made)

    def test_answers_of_one_token_have_no_steps(
        self, towns: FusionEngine, requests: list[Asked]
    ) -> None:
        bound = bound_of(towns, requests[:2], tokens=1)
        assert bound.requests_per_s == pytest.approx(1e3 / bound.prefill_ms)
        assert set(asdict(bound)) == {
            *("ratio", "clients", "prefill_ms", "step_ms", "requests_per_s", "reached")
        }


class TestOneRequest:
    def test_it_ends_with_its_only_token(self, towns: FusionEngine, requests: list[Asked]) -> None:
        settings = AnswerSettings(max_tokens=TOKENS, break_even=False)
        for asked in requests[:3]:
            request, passes = prefill_alone(towns, asked, 0.15, tokens=1)
            assert request.answer is not None
            expected = towns.answer(asked.prompt, settings).token_ids
            assert request.answer.token_ids == expected[:1]
            assert min(passes) > 0.0

    def test_or_goes_on_to_decode(self, towns: FusionEngine, requests: list[Asked]) -> None:
        request, _ = prefill_alone(towns, requests[0], 0.15, tokens=2)
        assert (request.stage, len(request.output.token_ids)) == (Stage.DECODE, 1)
        request.close()

    def test_long_prompts_take_several_passes(self, towns: FusionEngine) -> None:
        text = " ".join(f"House {number} is {number + 1} years old." for number in range(75))
        assert 1024 < towns.count_tokens(text) < 1536
        limits = towns.serving.limits
        request, of_long = prefill_alone(towns, Asked(text, ()), 1.0, tokens=1)
        rows = int(limits.cost_alone / limits.of_a_row(request))
        assert len(of_long) == ceil(len(request.encoded.token_ids) / rows) > 2
        _, of_short = prefill_alone(towns, Asked(text[:100], ()), 1.0, tokens=1)
        assert len(of_short) == 1

    def test_what_fails_says_why(self, towns: FusionEngine) -> None:
        with pytest.raises(PromptTooLongError):
            prefill_alone(towns, Asked("What is it? " * 500, ()), 0.15, tokens=1)
