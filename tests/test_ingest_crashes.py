"""A whole ingest killed at random moments: what was there stays, and the next one makes it whole.

FUSIONRAG_CRASHES: at how many moments, 50 where it isn't set.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CRASHES = os.environ.get("FUSIONRAG_CRASHES", "50")
ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_an_ingest_killed_at_any_moment_loses_nothing(model_dir: Path, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.crashing_ingest", tmp_path / "store", model_dir, CRASHES],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | {"TOKENIZERS_PARALLELISM": "false"},
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > int(CRASHES)  # else none got so far as to end an operation
