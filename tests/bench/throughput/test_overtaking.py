"""Short prompts behind long ones."""

from __future__ import annotations

from collections.abc import Sequence
from time import sleep
from typing import Any

import pytest
import torch

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.bench.throughput import overtaking
from fusionrag_integrations.bench.throughput.load import Outcome, Timed, open_loop
from fusionrag_integrations.bench.throughput.overtaking import (
    MOMENTS,
    ShortBehindLong,
    measure_overtaking,
)
from fusionrag_integrations.bench.throughput.workload import Asked
from fusionrag_integrations.errors import FusionRAGError
from fusionrag_integrations.execution.executor import Executor
from tests.bench.throughput.conftest import plan

PASS = 0.1  # seconds; what passes of this model take is nothing beside it


def measured(engine: FusionEngine, **changes: Any) -> ShortBehindLong:
    return measure_overtaking(engine, plan(**changes), lambda *told: None)


@pytest.fixture
def slow_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Executor.run

    def slowed(executor: Executor, inputs: Sequence[Any]) -> list[torch.Tensor]:
        sleep(PASS)
        return run(executor, inputs)

    monkeypatch.setattr(Executor, "run", slowed)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[Asked], list[float]]]:
    """The requests that arrived in open loops, and when."""
    seen: list[tuple[list[Asked], list[float]]] = []

    def watched(ask: Any, asked: Any, tokens: int, arrivals: Any) -> Outcome:
        seen.append((list(asked), list(arrivals)))
        return open_loop(ask, asked, tokens, arrivals)

    monkeypatch.setattr(overtaking, "open_loop", watched)
    return seen


@pytest.mark.usefixtures("slow_passes")
def test_short_prompts_wait_for_a_pass_and_no_more(
    towns: FusionEngine, loads: list[tuple[list[Asked], list[float]]]
) -> None:
    told: list[Any] = []
    found = measure_overtaking(
        towns, plan(ratios=(1.0, 0.0)), lambda *progress: told.append(progress)
    )
    assert found.ratio == 1.0
    assert min(found.pass_ms, found.alone_ms) / 1000 >= PASS
    assert len(found.behind_ms) == len(MOMENTS) == len(loads)
    assert min(found.behind_ms) / 1000 > PASS  # what is under way, and its own
    limit = 2 * found.alone_ms + found.pass_ms
    assert found.of_limit == pytest.approx(max(found.behind_ms) / limit)
    assert told == [("overtaking", number, 3) for number in range(4)]


def test_one_prompt_is_short_and_one_holds_all_chunks(
    towns: FusionEngine, loads: list[tuple[list[Asked], list[float]]]
) -> None:
    found = measured(towns)
    shorts = [asked[1] for asked, _ in loads]
    (long,) = {asked[0].token_ids for asked, _ in loads}
    assert found.long_tokens == len(long)
    chunks = towns.store.catalog.chunks
    for record in chunks.records(chunks.ids()).values():
        assert record.chunk.text in str(loads[0][0][0].prompt)
        assert not any(record.chunk.text in str(short.prompt) for short in shorts)
    assert {len(short.token_ids) for short in shorts} == {found.short_tokens}
    assert 100 <= found.short_tokens < 300
    assert len({short.token_ids for short in shorts}) == len(MOMENTS)


def test_a_long_prompt_has_so_many_tokens_at_most(
    towns: FusionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overtaking, "LONG_TOKENS", 500)
    assert 400 < measured(towns).long_tokens <= 500


def test_who_arrives_too_late_was_not_behind(
    towns: FusionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(*given: Any) -> Outcome:
        return Outcome((Timed(0.0, (1.0,), 1.0), Timed(1.5, (1.75,), 1.75)), ())

    monkeypatch.setattr(overtaking, "open_loop", late)
    found = measured(towns)
    assert (found.behind_ms, found.of_limit) == ((), None)


def test_a_prompt_that_fails_is_told(towns: FusionEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(engine: FusionEngine, *given: Any) -> Any:
        raise RuntimeError("no engine today")

    monkeypatch.setattr(FusionEngine, "stream", refused)
    with pytest.raises(FusionRAGError, match="prompt failed: RuntimeError: no engine today"):
        measured(towns)
