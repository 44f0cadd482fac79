"""Processes that read, write, delete and verify the same few records at once.

FUSIONRAG_SOAK_SECONDS: for how long, 2 where it isn't set.
"""

from __future__ import annotations

import os
import subprocess
import sys

from fusionrag_integrations.store.kv.verify import verify
from tests.records.soaker import FLEETING, KEYS, STEADY, WRITERS
from tests.records.writer import LARGE, ROOT, SIGNATURE, version_of, write

SECONDS = os.environ.get("FUSIONRAG_SOAK_SECONDS", "2")
ROLES = ["write"] * 3 + ["read"] * 3 + ["delete", "verify"]


def test_eight_processes_on_the_same_records_never_see_a_wrong_byte(files, directory):
    for key in KEYS:
        write(files, key, WRITERS, shape=LARGE)
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.records.soaker", directory, role, str(number), SECONDS],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for number, role in enumerate(ROLES)
    ]
    ended = [(*process.communicate(), process.returncode) for process in processes]
    for role, (_, stderr, code) in zip(ROLES, ended, strict=True):
        assert code == 0, f"{role}: {stderr}"
    turns = [int(stdout) for stdout, _, _ in ended]
    assert [problem.error for problem in verify(files.files, SIGNATURE)] == []
    for key in STEADY:  # whoever wrote it last wrote it in its last turn
        version = version_of(files, key)
        assert version is not None
        assert version // WRITERS == turns[version % WRITERS] + 1
    for key in FLEETING:
        version_of(files, key)
    assert files.files.sweep() == []
    assert list((directory / "tmp").iterdir()) == []
