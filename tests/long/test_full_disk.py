"""A disk that fills up at many moments of an ingest: what is said, and what is left."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]
SIZES = (4, 60, 120, 1000, 2300, 2700, 3100, 3500)  # KB that are free


def may_mount(place: Path) -> bool:
    try:
        mount = [*NAMESPACE, "mount", "-t", "tmpfs", "none", place]
        return subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def test_full_disk(
    model_dir: Path, tmp_path: Path, report: Callable[[str, str, object, object], None]
) -> None:
    disk, elsewhere = tmp_path / "disk", tmp_path / "elsewhere"
    disk.mkdir()
    elsewhere.mkdir()
    if not may_mount(disk):
        pytest.skip("this system lets no user mount a small disk (unshare --user --mount)")
    module = [sys.executable, "-m", "tests.long.full_disk", model_dir, disk, elsewhere]
    command = [*NAMESPACE, *module, ",".join(map(str, SIZES))]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    died = [row for row in rows if row["ended"]]
    refused = [row for row in rows if row["given"] and row["given"]["said"] != "done"]
    problems = [problem for row in rows if row["given"] for problem in row["given"]["problems"]]
    report(
        "Full disk",
        f"Ingests of 18 chunks, by engine and command, with {SIZES[0]} to {SIZES[-1]} KB "
        "free, and again once there is room",
        f"{len(rows)} ingests, of which {len(refused)} found no room",
        f"{len(died)} hung or crashed, {len(problems)} documents lost, answers wrong or damages "
        "left afterwards",
    )
    assert run.returncode == 0, run.stderr
    assert not died, (died, run.stderr)
    assert not problems, problems
    assert len(refused) > len(SIZES)
    assert all(row["given"]["said"].startswith("StoreError: ") for row in refused), refused
