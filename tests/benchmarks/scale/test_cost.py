"""Bytes and dollars."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.scale.dollars import Prices, break_even, corpus_cost, serving_month
from benchmarks.scale.ingest import IngestWork
from benchmarks.scale.kv_bytes import bytes_a_token, record_bytes
from benchmarks.scale.parameters import Service, Speed, service_from
from benchmarks.scale.prompts import Prompt
from fusionrag_integrations.errors import InvalidInputError

PRICES = Prices(3.6, 0.02, put=0.0, get=0.0, months=10.0, utilisation=0.5)
WORK = IngestWork(0.4, 0.6, 0.0, 1e6, 0.0, 1e18, 1e18)
SPEED = Speed(0.0, 1.0)
REUSE = Service(1.0, 0.0, 0.0, 1e-3, 0.0, 0.0, 0.0, SPEED, SPEED, 1.0)
FULL = replace(REUSE, recomputed=1.0)


@pytest.mark.parametrize(
    ("model", "dense"),
    [("qwen2.5-7b", 28 * 4 * 128 * 2 * 2), ("llama-2-7b", 32 * 32 * 128 * 2 * 2)],
)
def test_bytes_are_those_of_keys_values_and_little_else(model: str, dense: int) -> None:
    assert bytes_a_token(model, "bfloat16") == pytest.approx(dense, rel=0.001)
    assert 0.5 < bytes_a_token(model, "int8") / dense < 0.54
    assert 0.25 < bytes_a_token(model, "int4") / dense < 0.32


def test_an_unknown_shape() -> None:
    with pytest.raises(InvalidInputError, match="Unknown shape 'gpt-9'; known are"):
        record_bytes("gpt-9", "int8")


def test_a_corpus() -> None:
    found = corpus_cost(1_000_000, WORK, PRICES)
    assert found.kv_bytes == 2e12
    assert found.storage_month == pytest.approx(40.0)
    assert found.ingest_gpu_hours == pytest.approx(1e6 / 3600)
    assert found.ingest == pytest.approx(1_000.0)


def test_break_even_is_where_savings_equal_costs() -> None:
    """256 tokens saved are 0.256 s, $0.000512; a month costs $0.00004 and a tenth of $0.001."""
    found = break_even(1_100, 100, WORK, (REUSE, FULL), PRICES)
    assert found.saved_s == pytest.approx(1.0)
    assert found.uses_a_month == pytest.approx((4e-5 + 1e-4) / 5.12e-4)
    assert found.bytes_s == pytest.approx(1e6 / 0.256)


def test_nothing_breaks_even_where_nothing_is_saved() -> None:
    found = break_even(1_100, 100, WORK, (FULL, FULL), PRICES)
    assert (found.uses_a_month, found.bytes_s) == (None, None)


def test_serving_takes_whole_replicas() -> None:
    prompt = Prompt({"x": 1_000}, 500, 10)
    one = serving_month(1, REUSE, PRICES, prompt)
    assert one == (1, pytest.approx(730 * 3.6))
    assert serving_month(730 * 3600 * 4, REUSE, PRICES, prompt)[0] == 4


def test_a_service_lacks_a_figure() -> None:
    with pytest.raises(InvalidInputError, match="here lacks a figure of a service: 'recomputed'"):
        service_from({"bytes_a_token": 1}, "here")
