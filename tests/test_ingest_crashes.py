"""A whole ingest killed at random moments: what was there stays, and the next one makes it whole.

tests/long/test_kills.py does it at more moments.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.processes import run_module

CRASHES = 10


def crashes(store: Path, model: Path, rounds: int) -> tuple[int, int, str]:
    """How many operations were done, after how many kills the store was wrong, and how."""
    run = run_module("tests.crashing_ingest", store, model, rounds)
    done, wrong = run.stdout.split()
    return int(done), int(wrong), run.stderr


@pytest.mark.slow
def test_an_ingest_killed_at_any_moment_loses_nothing(model_dir: Path, tmp_path: Path) -> None:
    done, wrong, said = crashes(tmp_path / "store", model_dir, CRASHES)
    assert wrong == 0, said
    assert done > CRASHES  # else none got so far as to end an operation
