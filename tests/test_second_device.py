"""A model that is spread over devices."""

from __future__ import annotations

import subprocess
import sys

from tests.processes import ROOT


def test_a_model_that_is_spread_over_two_devices_passes_its_gates() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.second_device"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
