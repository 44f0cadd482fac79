"""What the benchmark of object storage makes of its times."""

from __future__ import annotations

import pytest

from benchmarks.shared_ttft import Times, Turn, summed_up


def test_a_prefetch_hides_a_share_of_what_the_storage_adds() -> None:
    turns = [
        Turn(directory=100.0, first=200.0, prefetched=(200.0, 120.0), second=110.0),
        Turn(directory=100.0, first=300.0, prefetched=(200.0, 140.0), second=120.0),
        Turn(directory=100.0, first=90.0, prefetched=(95.0, 95.0), second=100.0),  # nothing added
    ]
    found = summed_up(turns, [0.0, 50.0], read_bytes=7)
    assert found.directory == Times(100.0, (100.0, 100.0))
    assert found.first.ttft_ms == 200.0
    assert [each.gap_ms for each in found.prefetched] == [0.0, 50.0]
    assert [each.times.ttft_ms for each in found.prefetched] == [200.0, 120.0]
    assert [each.hidden[0] for each in found.prefetched] == pytest.approx([0.25, 0.8])
    assert found.later[0] == pytest.approx(1.1)
    assert (found.questions, found.read_bytes) == (3, 7)
