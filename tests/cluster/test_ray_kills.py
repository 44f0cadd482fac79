"""Ingests on Ray into S3 of which something is killed, or the storage away, at random moments."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from fusionrag_integrations import Document
from fusionrag_integrations.ray.indexing import RayReport, stages
from fusionrag_integrations.store.objects.opening import open_objects
from fusionrag_integrations.store.published.verifying import find_damage_at
from tests.cluster.conftest import S3Server
from tests.cluster.ray_ingest import MANY, SECONDS, driver, indexed, same, workers
from tests.cluster.ray_processes import ray_processes
from tests.store.published.sharing import Open, expire, live_keys
from tests.waiting import until

pytestmark = [pytest.mark.enable_socket, pytest.mark.long, pytest.mark.timeout(0)]

Report = Callable[[str, str, object, object], None]
DOCUMENTS = MANY[:40]
KINDS = ["worker"] * 12 + ["command"] * 9 + ["storage"] * 9
WORK = ("KVWorker", "_measure")
AWAY = 30.0  # seconds that the storage answers nothing


def test_ingests_on_ray_disturbed(
    ray_address: str,
    s3_server: S3Server,
    s3: str,
    model_dir: Path,
    tmp_path: Path,
    opened: Open,
    report: Report,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stages, "TASK_PASSES", 1)  # a batch is a small part of all
    file = tmp_path / "towns.jsonl"
    file.write_text("\n".join(json.dumps(row(document)) for document in DOCUMENTS))
    local = opened(tmp_path / "local")
    local.ingest(DOCUMENTS)
    needed = len(live_keys(local))
    done, came, twice = Counter(KINDS), Counter[str](), Counter[str]()

    def disturb(kind: str, url: str, at: int) -> None:
        """With at records of KV being there, or with the first worker."""
        if kind == "command":
            command = driver(file, url, model_dir, ray_address)
            while command.poll() is None and len(stored(url)) < at:
                time.sleep(0.1)
            came[kind] += command.poll() is None
            command.kill()
            command.wait()
            until(lambda: not workers())
            there = len(stored(url))
            expire(url)
            resumed = indexed(DOCUMENTS, model_dir, url).ingest
            twice[kind] += resumed.isolated_computed + resumed.fused_computed + there - needed
            return
        moment = Moment(at, kill_a_worker if kind == "worker" else lambda: freeze(s3_server))
        made = indexed(DOCUMENTS, model_dir, url, moment)
        came[kind] += moment.came()
        twice[kind] += computed_in_all(made) - needed

    chance = random.Random(0)
    for number, kind in enumerate(chance.sample(KINDS, len(KINDS))):
        url = f"{s3}/round-{number}"
        disturb(kind, url, chance.randrange(needed))
        with opened(url) as made:
            same(made, local)
            assert stored(url) == live_keys(made) == live_keys(local)
        assert list(find_damage_at(url)) == []
    report(
        "Kills",
        "Ingests of 40 documents by two workers on Ray into S3: with some KV there, at a random "
        "moment, a worker is killed, the command is killed and run again, or the storage is away "
        f"for {AWAY:.0f} s",
        f"{done['worker']}, {done['command']} and {done['storage']} ingests, of which "
        f"{came['worker']}, {came['command']} and {came['storage']} were disturbed before the end",
        "0 stores that differ from one that was filled in one process, by documents, keys, links, "
        f"answers or damages; of {len(KINDS) * needed:,} records of KV, {twice['worker']}, "
        f"{twice['command']} and {twice['storage']} were begun or computed twice, in batches that "
        "nobody had heard the end of",
    )
    assert all(came[kind] > done[kind] / 2 for kind in done)


def row(document: Document) -> dict[str, str]:
    return {"id": document.id, "title": document.title, "text": document.text}


def computed_in_all(report: RayReport) -> int:
    """Of how many chunks KV was begun, each time counted."""
    kv = [stage for stage in report.stages if stage.stage in ("isolated", "fused")]
    return sum(stage.items + stage.lost - stage.found for stage in kv)


def stored(url: str) -> set[str]:
    """The keys of all KV at a URL."""
    with open_objects(url) as objects:
        names = [Path(entry.name).name for entry in objects.entries("kv")]
    return {name.partition(".")[0] for name in names}


def kill_a_worker() -> bool:
    """One of those that are there, or the next one. Returns whether one came."""
    ended = time.monotonic() + SECONDS
    while not (there := [p for part in WORK for p in ray_processes(part)]):
        if time.monotonic() > ended:
            return False
        time.sleep(0.05)
    random.choice(there).kill()
    return True


def freeze(server: S3Server) -> bool:
    server.freeze()
    time.sleep(AWAY)
    server.thaw()
    return True


class Moment:
    """A progress that calls something, in a thread, with so many records of KV being there."""

    def __init__(self, at: int, call: Callable[[], bool]) -> None:
        self._at, self._call = at, call
        self._there: dict[str, int] = {}
        self._called: Future[bool] | None = None
        self._thread = ThreadPoolExecutor(1)

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage in ("isolated", "fused"):
            self._there[stage] = done
            if self._called is None and sum(self._there.values()) >= self._at:
                self._called = self._thread.submit(self._call)

    def came(self) -> bool:
        """Waits for its end."""
        self._thread.shutdown()
        return self._called is not None and self._called.result()
