"""A whole ingest killed at random moments: what was there stays, and the next one makes it whole.

tests/long/test_kills.py does it at more moments.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CRASHES = 20


def crashes(store: Path, model: Path, rounds: int) -> tuple[int, int, str]:
    """How many operations were done, after how many kills the store was wrong, and how."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.crashing_ingest", store, model, str(rounds)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | {"TOKENIZERS_PARALLELISM": "false"},
    )
    assert run.returncode == 0, run.stderr
    done, wrong = run.stdout.split()
    return int(done), int(wrong), run.stderr


@pytest.mark.slow
def test_an_ingest_killed_at_any_moment_loses_nothing(model_dir: Path, tmp_path: Path) -> None:
    done, wrong, said = crashes(tmp_path / "store", model_dir, CRASHES)
    assert wrong == 0, said
    assert done > CRASHES  # else none got so far as to end an operation
