"""What the benchmark of ingest on Ray times."""

from __future__ import annotations

import pytest

from benchmarks import ray_ingest


def test_the_clock_starts_behind_the_first_quarter_and_ends_with_the_last_chunk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr(ray_ingest, "perf_counter", lambda: now)
    clock = ray_ingest._Clock(chunks=8)  # 16 records
    clock("isolated", 0, 8)
    for done in range(1, 9):
        now += 100.0 if done == 1 else 1.0  # loading the model, before the first one
        clock("isolated", done, 8)
    for done in range(1, 9):
        now += 2.0
        clock("fused", done, 8)
    assert clock.rate == pytest.approx(12 / (4 + 16))
    with pytest.raises(ray_ingest._Enough):
        clock("correct", 0, 4)
