"""A disk that fills up at many moments of an ingest or delete: what is said, and what is left."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.processes import run_module

NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]
SIZES = (4, 60, 1000, 3500, 8300, 8700, 9500, 12000)  # KB that are free


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
    sizes = ",".join(map(str, SIZES))
    given = (model_dir, disk, elsewhere, sizes)
    run = run_module("tests.long.full_disk", *given, before=NAMESPACE)
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    died = [row for row in rows if row["ended"]]
    refused = [row for row in rows if row["given"] and row["given"]["said"] != "done"]
    deletes = [row for row in rows if row["way"] == "delete"]
    without_room = max((row["free"] for row in deletes if row in refused), default=0)
    problems = [problem for row in rows if row["given"] for problem in row["given"]["problems"]]
    report(
        "Full disk",
        f"Ingests of 18 chunks, by engine and command, and deletes of 3, with {SIZES[0]} to "
        f"{SIZES[-1]} KB free, and again once there is room",
        f"{len(rows)} ingests and deletes, of which {len(refused)} found no room, deletes with "
        f"{without_room} KB or less",
        f"{len(died)} hung or crashed, {len(problems)} documents lost, answers wrong or damages "
        "left afterwards",
    )
    assert not died, (died, run.stderr)
    assert not problems, problems
    assert len(refused) > len(SIZES)
    assert all(row["given"]["said"].startswith("StoreError: ") for row in refused), refused
