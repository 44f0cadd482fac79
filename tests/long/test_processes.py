"""Several processes over one store, and processes that fork while their threads are at work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.store.verify import find_damage
from tests.crashing_ingest import document
from tests.long.readers import DENSE, ISOLATED, prompt_of, versions
from tests.processes import ROOT, run_module

Report = Callable[[str, str, object, object], None]

READERS, OPERATIONS = 3, 60
FORKS = 50


def expected(model_dir: Path, store: Path) -> dict[str, list[str]]:
    """Text of each document -> what is answered over it by its KV, or in full where that is yet to
    be written.
    """
    with FusionEngine.from_pretrained(model_dir, store=store, chunk_tokens=48) as engine:
        found: dict[str, list[str]] = {}
        for name, version in sorted(versions(OPERATIONS)):
            one = document(name, version)
            engine.ingest([one])
            prompt = prompt_of(one.text)
            found[one.text] = [engine.answer(prompt, how).text for how in (ISOLATED, DENSE)]
    return found


def test_readers_and_a_writer(model_dir: Path, tmp_path: Path, report: Report) -> None:
    store, told, known = tmp_path / "store", tmp_path / "told", tmp_path / "expected"
    known.write_text(json.dumps(expected(model_dir, tmp_path / "own")))
    told.touch()
    FusionEngine.from_pretrained(model_dir, store=store, chunk_tokens=48).close()

    def start(verb: str, *rest: object) -> subprocess.Popen[str]:
        arguments = map(str, [verb, store, model_dir, told, *rest])
        command = [sys.executable, "-m", "tests.long.readers", *arguments]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )

    readers = [start("read", known, seed) for seed in range(READERS)]
    writer = start("write", OPERATIONS)
    _, said = writer.communicate(timeout=400)
    assert writer.returncode == 0, said
    seen: Counter[str] = Counter()
    wrong: list[str] = []
    errors: list[str] = []
    for reader in readers:
        printed, said = reader.communicate(timeout=60)
        assert reader.returncode == 0, said
        found = json.loads(printed)
        seen.update(searches=found["searches"], answers=found["answers"])
        wrong += found["wrong"]
        errors += found["errors"]
    damage = list(find_damage(store))
    report(
        "Processes",
        f"{READERS} processes search and answer while another ingests, replaces and deletes",
        f"{OPERATIONS} ingests and deletes, {seen['searches']:,} searches, {seen['answers']:,} "
        "answers",
        f"{len(wrong)} wrong or stale, {len(errors)} errors, {len(damage)} damages",
    )
    assert not wrong, wrong[:5]
    assert not errors, errors[:5]
    assert not damage
    assert seen["searches"] > OPERATIONS


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system doesn't fork")
def test_forks(model_dir: Path, tmp_path: Path, report: Report) -> None:
    store = tmp_path / "store"
    run = run_module("tests.long.forking", store, model_dir, FORKS)
    found = json.loads(run.stdout)
    before, after, errors = found["only answers"], found["searches"], found["errors"]
    filters, searches = before.get("filters", 0), after.get("searches", 0)
    damage = list(find_damage(store))
    report(
        "Forks",
        "Forks at random moments, while other threads answer, and in the second half search, "
        "ingest and delete; each child answers and searches",
        f"{FORKS} forks: {filters} children did both, also by filters; {searches} of parents that "
        "search did both, and said by name that they can't filter",
        f"{FORKS - filters - searches} children wrong or hanging, {len(errors)} errors in the "
        f"parent, {len(damage)} damages",
    )
    assert (before, after) == (
        {"filters": FORKS // 2},
        {"searches": FORKS - FORKS // 2},
    ), run.stderr
    assert not errors, errors[:5]
    assert not damage
