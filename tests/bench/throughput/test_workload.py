"""What is asked, and when."""

from __future__ import annotations

from collections import Counter
from statistics import mean, stdev
from typing import Any

import pytest

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.bench.throughput.plan import Plan
from fusionrag_integrations.bench.throughput.workload import Workload, poisson, zipf
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.serving.settings import AnswerSettings
from tests.bench.throughput.conftest import TOKENS, plan


def test_popularity_falls_with_the_rank() -> None:
    shares = zipf(100, 0.8)
    assert shares.sum() == pytest.approx(1.0)
    assert shares[0] / shares[9] == pytest.approx(10**0.8)
    assert shares[3] / shares[99] == pytest.approx(25**0.8)
    assert set(zipf(5, 0.0)) == {0.2}


def test_arrivals_are_a_poisson_process() -> None:
    arrivals = poisson(4000, 8.0, 3, 1)
    gaps = [b - a for a, b in zip([0.0, *arrivals], arrivals, strict=False)]
    assert min(gaps) > 0.0
    assert mean(gaps) == pytest.approx(1 / 8, rel=0.05)
    assert stdev(gaps) == pytest.approx(1 / 8, rel=0.05)  # of exponential gaps it is the mean
    assert arrivals == poisson(4000, 8.0, 3, 1)
    assert arrivals != poisson(4000, 8.0, 3, 2)
    assert poisson(5, 16.0, 3, 1) == pytest.approx([at / 2 for at in arrivals[:5]])


def texts_in(engine: FusionEngine, asked: Any) -> list[str]:
    """The texts of the store's chunks that stand in a prompt."""
    records = engine.store.catalog.chunks.records(engine.store.catalog.chunks.ids()).values()
    return [record.chunk.text for record in records if record.chunk.text in str(asked.prompt)]


def test_prompts_are_as_long_as_they_may_be(towns: FusionEngine) -> None:
    workload = Workload(towns, plan())
    longest = max(len(record.encoded.token_ids) for record in workload.records)
    for asked in workload.requests(8, 1):
        assert len(asked.token_ids) == towns.count_tokens(asked.prompt)
        assert 400 - longest - 2 <= len(asked.token_ids) <= 400
        answer = towns.answer(asked.prompt, AnswerSettings(max_tokens=TOKENS))
        assert answer.usage.prompt_tokens == len(asked.token_ids)
        assert answer.missed_chunks == 0
        assert answer.fused_chunks + answer.isolated_chunks == len(texts_in(towns, asked))


def test_popular_chunks_are_asked_about_more_often(towns: FusionEngine) -> None:
    workload = Workload(towns, plan(exponent=2.0, prompt_tokens=200))
    drawn = Counter(t for asked in workload.requests(150, 1) for t in texts_in(towns, asked))
    ranked = [drawn[record.chunk.text] for record in workload.records]
    assert len(ranked) == 12
    assert ranked[0] == max(ranked)
    assert sum(ranked[:3]) > 2 * sum(ranked[6:])


def test_the_same_seed_asks_the_same(towns: FusionEngine) -> None:
    first = Workload(towns, plan()).requests(5, 1, 2)
    assert Workload(towns, plan()).requests(5, 1, 2) == first
    assert Workload(towns, plan()).requests(5, 1, 3) != first
    assert Workload(towns, plan(seed=1)).requests(5, 1, 2) != first


def test_prompts_are_over_so_many_chunks_at_most(towns: FusionEngine) -> None:
    workload = Workload(towns, plan(chunks=3))
    drawn = {text for asked in workload.requests(20, 1) for text in texts_in(towns, asked)}
    assert drawn == {record.chunk.text for record in workload.records}
    assert len(drawn) == 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt_tokens": 2045}, f"2045 tokens and answers of {TOKENS} are too long: .* 2048"),
        ({"prompt_tokens": 60}, "60 tokens has no room for the chunk"),
    ],
)
def test_prompts_that_cannot_be_made(
    towns: FusionEngine, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidInputError, match=said):
        Workload(towns, plan(**changes)).requests(1, 1)


def test_a_store_without_chunks(engine: FusionEngine) -> None:
    with engine, pytest.raises(InvalidInputError, match="has no chunks; ingest documents first"):
        Workload(engine, plan())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"clients": ()}, "asks for nothing"),
        ({"clients": (4, 0)}, "asks for nothing"),
        ({"ratios": ()}, "asks for nothing"),
        ({"requests": 0}, "asks for nothing"),
        ({"shares": (0.5, 0.0)}, r"shares are \(0.5, 0.0\)"),
        ({"exponent": -1.0}, "exponent is -1.0"),
    ],
)
def test_plans_that_cannot_be(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        Plan(**changes)


def test_a_closed_loop_has_two_requests_for_each_client() -> None:
    assert (plan(requests=10).requests_of(3), plan(requests=10).requests_of(8)) == (10, 16)
