"""Ten thousand requests that share passes, some cancelled or left, while things go wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.long.soak.requests import THREADS
from tests.long.test_full_disk import NAMESPACE, may_mount
from tests.long.test_load import Report
from tests.processes import run_module

REQUESTS = 10_000
MEGABYTES = 64  # that may be more: the allocator's, and caches of other libraries
FEW = 4  # threads and descriptors that may be more: other libraries' pools grow when they need to


def test_soak(tmp_path: Path, report: Report) -> None:
    disk, elsewhere = tmp_path / "disk", tmp_path / "elsewhere"
    disk.mkdir()
    if not may_mount(disk):
        pytest.skip("this system lets no user mount a small disk (unshare --user --mount)")
    run = run_module("tests.long.soak", disk, elsewhere, REQUESTS, before=NAMESPACE)
    found = json.loads(run.stdout)
    counts, more = found["counts"], found["more"]
    report(
        "Soak",
        f"Requests of the bundled model by {THREADS} threads that share passes, to an engine and a "
        "server over it, full attention, sampling and texts that come with questions among them; "
        "streams closed or dropped, tasks cancelled, sockets reset, clients killed (SIGKILL), "
        "while records are damaged, the disk fills up and documents come and go",
        ", ".join(f"{count:,} {what}" for what, count in counts.items()),
        f"{len(found['wrong'])} wrong answers, {len(found['errors'])} other errors, "
        f"{len(found['damages'])} damages left; "
        + ", ".join(f"{number} {what}" for what, number in more.items())
        + " more than before",
    )
    assert not found["wrong"], found["wrong"][:5]
    assert not found["errors"], found["errors"][:5]
    assert not found["damages"], found["damages"][:5]
    assert more["records of KV"] == more["directories"] == 0, more
    assert max(more["threads"], more["descriptors"]) <= FEW, more
    assert max(more["MB"], more["MB of tensors"]) <= MEGABYTES, more
    assert all(counts.values()), counts
