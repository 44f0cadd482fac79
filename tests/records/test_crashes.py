"""Processes killed while they write: what was there stays, what is new is whole or not there.

FUSIONRAG_CRASHES: at how many random moments a process is killed, 50 where it isn't set.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fusionrag_integrations.store.kv.local import LocalKVFiles
from fusionrag_integrations.store.kv.record_files import RecordFiles
from fusionrag_integrations.store.kv.verify import verify
from tests.records.writer import (
    CALLS,
    KEY,
    LARGE,
    ROOT,
    SHARED,
    SIGNATURE,
    file_of,
    operation,
    version_of,
    write,
)

CRASHES = int(os.environ.get("FUSIONRAG_CRASHES", "50"))
WRITER = [sys.executable, "-m", "tests.records.writer"]


def contents(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if not path.is_dir()]


# With how many steps there are at the least: making three directories, opening, writing, syncing,
# closing and renaming the draft; or unlinking and syncing.
@pytest.mark.parametrize(
    ("what", "versions", "least"),
    [
        ("first", {None, 2}, 8),
        ("next", {None, 2}, 6),
        ("replacement", {1, 2}, 5),
        ("deletion", {1, None}, 2),
    ],
)
def test_a_process_killed_at_any_step_leaves_the_old_record_or_the_new_one(
    tmp_path, what, versions, least
):
    run = subprocess.run(
        [*WRITER, "steps", tmp_path, what], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert run.returncode == 0, run.stderr
    places = dict(line.split() for line in run.stdout.splitlines())
    assert set(places.values()) == {"0", "-9"}, run.stderr
    steps = Counter(place.partition("-")[0] for place, code in places.items() if code == "-9")
    assert steps["before"] == steps["after"] >= least
    assert steps["half"] >= 2 or what == "deletion"
    others = {key: 1 for key in CALLS[what][0] if key != KEY}
    found = set()
    for place, code in places.items():
        directory = tmp_path / place
        files = RecordFiles(LocalKVFiles(directory), SIGNATURE)
        assert [problem.error for problem in verify(files.files, SIGNATURE)] == [], place
        version = version_of(files)
        assert version in versions, place
        found.add(version)
        wanted = others | ({} if version is None else {KEY: version})
        keys = list(files.keys())
        assert {key: version_of(files, key) for key in keys} == wanted, place
        left = [path for path in contents(directory) if path.parent.name == "tmp"]
        assert len(left) <= (code != "0"), place
        assert files.files.sweep() == left, place
        assert sorted(contents(directory)) == sorted(file_of(directory, key) for key in wanted)
        write(files, KEY, 3)  # the debris hinders nobody
        assert version_of(files) == 3, place
    assert found == versions


def test_a_process_killed_at_any_moment_loses_nothing_that_was_done(tmp_path):
    files = RecordFiles(LocalKVFiles(tmp_path), SIGNATURE)
    versions: dict[str, int | None] = dict.fromkeys(SHARED)
    done = 0
    for seed in range(CRASHES):
        delay = random.Random(seed).uniform(0.0, 0.06)
        where = f"round and seed {seed}, killed {delay:.4f} s after operation {done + 1}"
        for number in killed_after(delay, tmp_path, done + 1, where):
            assert number == done + 1, where
            key, version = operation(number)
            versions[key] = version
            done = number
        key, version = operation(done + 1)
        found = {key: version_of(files, key) for key in SHARED}
        possible = [versions, versions | {key: version}]
        assert found in possible, where
        if found != versions:  # it was done, but wasn't told any more
            versions, done = found, done + 1
        there = sorted(key for key in SHARED if found[key] is not None)
        assert list(RecordFiles(LocalKVFiles(tmp_path), SIGNATURE).keys()) == there, where
        assert [problem.error for problem in verify(files.files, SIGNATURE)] == [], where
        assert len(files.files.sweep()) <= 1, where
        assert list((tmp_path / "tmp").iterdir()) == [], where
    assert done > CRASHES  # else they were killed before they did something


def killed_after(delay: float, directory: Path, first: int, where: str) -> list[int]:
    """Numbers of the operations that a process told as done until it was killed."""
    with subprocess.Popen(
        [*WRITER, "forever", directory, str(first)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        time.sleep(delay)
        process.kill()
        lines += process.stdout.readlines()
    assert process.returncode == -9, where
    return [int(line) for line in lines if line.endswith("\n")]


def test_a_writer_starts_without_anything_heavy(tmp_path):
    code = "import sys, tests.records.writer; print({'torch', 'numpy'} & set(sys.modules))"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert run.stdout == "set()\n"


# Killing a process loses nothing that the system has in its memory; a power cut does. So the
# order of the calls is looked at: names and contents that aren't synced count as lost.


class Disk:
    """What the calls of `os` have brought to the disk, and what would be lost with the power."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.unsynced: set[Path] = set()  # files with content, directories with names
        self.renamed_unsynced: list[Path] = []
        self.renamed = 0
        self._paths: dict[int, Path] = {}
        for name in ("open", "write", "fsync", "close", "mkdir", "replace", "rename", "unlink"):
            patch.setattr(os, name, self._watched(name, getattr(os, name)))

    def _watched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            result = real(*arguments, **options)
            getattr(self, f"_{name}")(result, *arguments)
            return result

        return call

    def _open(self, descriptor: int, path: Path, *_: object) -> None:
        self._paths[descriptor] = Path(path)

    def _write(self, _: int, descriptor: int, content: object) -> None:
        self.unsynced.add(self._paths[descriptor])

    def _fsync(self, _: None, descriptor: int) -> None:
        self.unsynced.discard(self._paths[descriptor])

    def _close(self, _: None, descriptor: int) -> None:
        del self._paths[descriptor]

    def _mkdir(self, _: None, path: Path, *__: object) -> None:
        self.unsynced.add(Path(path).parent)

    def _replace(self, _: None, source: Path, target: Path) -> None:
        self.renamed += 1
        if Path(source) in self.unsynced:
            self.renamed_unsynced.append(Path(source))
        self.unsynced.add(Path(target).parent)

    _rename = _replace

    def _unlink(self, _: None, path: Path) -> None:
        self.unsynced.add(Path(path).parent)


def test_content_is_on_the_disk_before_it_has_its_name(files, monkeypatch):
    with monkeypatch.context() as patch:
        disk = Disk(patch)
        for version in (1, 2):
            write(files, KEY, version, shape=LARGE)
    assert disk.renamed == 2
    assert disk.renamed_unsynced == []


def test_all_names_are_on_the_disk_when_a_write_returns(tmp_path, monkeypatch):
    files = RecordFiles(LocalKVFiles(tmp_path / "new" / "kv"), SIGNATURE)
    for key, version in ((KEY, 1), (KEY, 2), ("cd02", 1)):
        with monkeypatch.context() as patch:
            disk = Disk(patch)
            write(files, key, version)
        assert disk.unsynced == set()


def test_a_deletion_is_on_the_disk_when_it_returns(files, monkeypatch):
    write(files)
    with monkeypatch.context() as patch:
        disk = Disk(patch)
        files.delete(KEY)
        files.delete(KEY)
    assert disk.unsynced == set()
