"""An ingest by several workers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.scale.ingest import IngestWork, ingest
from fusionrag_integrations.errors import InvalidInputError

WORK = IngestWork(
    isolated_s=1.0,
    fused_s=3.0,
    driver_s=0.0,
    record_bytes=0.0,
    read_records=10,
    worker_bytes_s=1.0,
    shared_bytes_s=1.0,
)


def test_one_worker_takes_the_sum() -> None:
    assert ingest(WORK, 50, 1).seconds == pytest.approx(200.0)
    moving = replace(WORK, record_bytes=0.1)
    assert moving.worker_s == pytest.approx(5.2)
    assert ingest(moving, 50, 1).seconds == pytest.approx(50 * 5.2)


@pytest.mark.parametrize("workers", [2, 4, 8])
def test_workers_divide_the_work(workers: int) -> None:
    run = ingest(WORK, 800, workers)
    assert 800 * 4 / run.seconds == pytest.approx(workers, rel=0.02)
    assert run.busy == pytest.approx(1.0, rel=0.02)


def test_the_driver_limits() -> None:
    assert ingest(replace(WORK, driver_s=1.0), 400, 16).seconds == pytest.approx(400, rel=0.05)


def test_shared_storage_limits() -> None:
    """12 records a chunk; writing 2 takes 2 s, reading 10 takes 10 s, at once with others'."""
    work = replace(WORK, record_bytes=1.0, worker_bytes_s=100.0)
    assert ingest(work, 200, 64).seconds == pytest.approx(200 * 10, rel=0.1)


def test_a_chunk_waits_for_its_neighbours() -> None:
    """Two chunks, each the other's neighbour: the second pass of neither begins before both."""
    assert ingest(WORK, 2, 2).seconds == pytest.approx(4.0)
    assert ingest(replace(WORK, isolated_s=5.0), 3, 2).seconds == pytest.approx(5 + 5 + 3 + 3)


def test_nothing_to_do_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="give 1 or more"):
        ingest(WORK, 0, 1)
