"""Processes killed at random moments (SIGKILL): what was there stays, and the next run ends it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.processes import run_module
from tests.test_ingest_crashes import crashes

Report = Callable[[str, str, object, object], None]
INGESTS, OTHERS, SHARED = 150, 40, 50


def test_ingests_killed(model_dir: Path, tmp_path: Path, report: Report) -> None:
    done, wrong, said = crashes(tmp_path / "store", model_dir, INGESTS)
    report(
        "Kills",
        "A process that ingests and deletes documents killed at a random moment, and the store "
        "checked and the cut-off operation run again",
        f"{INGESTS} kills during {done} operations",
        f"{wrong} stores with a document that was lost, damaged or neither old nor new",
    )
    assert wrong == 0, said


@pytest.mark.parametrize("what", ["repair", "index"])
def test_runs_killed(what: str, model_dir: Path, tmp_path: Path, report: Report) -> None:
    run = run_module("tests.long.killed", what, tmp_path, model_dir, OTHERS)
    wrong, longest = run.stdout.splitlines()[-1].split()
    done = {
        "repair": "A repair of a store with two damaged files killed at a random moment, and run "
        "again, with an ingest behind it",
        "index": "`fusionrag index` into a new store killed at a random moment, and run again",
    }
    report(
        "Kills",
        done[what],
        f"{OTHERS} kills within {longest} s, as long as it takes",
        f"{wrong} stores that weren't in the end what they are without a kill",
    )
    assert int(wrong) == 0, run.stderr


def test_writers_of_a_shared_store_killed(model_dir: Path, tmp_path: Path, report: Report) -> None:
    run = run_module("tests.long.killed_writers", tmp_path, model_dir, SHARED)
    wrong, cut, longest = run.stdout.splitlines()[-1].split()
    report(
        "Kills",
        "A writer of a store at a URL killed at a random moment, the newest version checked, read "
        "and written by others, and old versions collected",
        f"{SHARED} kills within {longest} s, as long as it takes; {cut} before its version was out",
        f"{wrong} versions damaged, neither old nor new, or answering otherwise than a directory",
    )
    assert int(wrong) == 0, run.stderr
