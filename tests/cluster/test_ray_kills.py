"""Ingests on Ray into S3 of which something is killed, or the storage away, at random moments."""

from __future__ import annotations

import json
import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import pytest

from fusionrag_integrations import Document
from fusionrag_integrations.ray.indexing import RayReport, stages
from fusionrag_integrations.store.objects.opening import open_objects
from fusionrag_integrations.store.published.verifying import find_damage_at
from fusionrag_integrations.store.published.writer_lease import FOLDER
from tests.cluster.conftest import S3Server
from tests.cluster.ray_ingest import MANY, SECONDS, driver, indexed, same, wait_for, workers
from tests.cluster.ray_processes import ray_processes
from tests.store.published.sharing import Open, live_keys

pytestmark = [pytest.mark.enable_socket, pytest.mark.long, pytest.mark.timeout(0)]

Report = Callable[[str, str, object, object], None]
DOCUMENTS = MANY[:40]
KINDS = ["worker"] * 20 + ["command"] * 15 + ["storage"] * 15
WORK = ("TextWorker", "KVWorker", "_read_facts", "_measure")
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

    def disturb(kind: str, url: str, moment: float) -> int:
        """Of how many chunks KV was computed once more."""
        if kind == "command":
            kill_the_command(driver(file, url, model_dir, ray_address), moment)
            there = len(stored(url))
            expire(url)
            resumed = indexed(DOCUMENTS, model_dir, url).ingest
            computed = resumed.isolated_computed + resumed.fused_computed
            return computed + there - len(live_keys(local))
        with later(moment, kill_a_worker if kind == "worker" else lambda: freeze(s3_server)):
            made = indexed(DOCUMENTS, model_dir, url)
        return computed_in_all(made) - len(live_keys(local))

    started = time.monotonic()
    undisturbed = indexed(DOCUMENTS, model_dir, f"{s3}/undisturbed")
    assert computed_in_all(undisturbed) == len(live_keys(local))
    longest = time.monotonic() - started
    chance = random.Random(0)
    twice = Counter[str]()
    for number, kind in enumerate(chance.sample(KINDS, len(KINDS))):
        url = f"{s3}/round-{number}"
        twice[kind] += disturb(kind, url, chance.uniform(0.0, longest))
        with opened(url) as made:
            same(made, local)
            assert stored(url) == live_keys(made) == live_keys(local)
        assert list(find_damage_at(url)) == []
    often = Counter(KINDS)
    report(
        "Kills",
        "Ingests of 40 documents by two workers on Ray into S3: at a random moment a worker is "
        "killed, the command is killed and run again, or the storage is away for "
        f"{AWAY:.0f} s",
        f"{often['worker']}, {often['command']} and {often['storage']} ingests, one after another",
        "0 stores that differ from one that was filled in one process, by documents, keys, links, "
        "answers or damages; of "
        f"{len(KINDS) * len(live_keys(local)):,} records of KV, "
        f"{twice['worker']}, {twice['command']} and {twice['storage']} were computed twice",
    )


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


def expire(url: str) -> None:
    """As if a minute had passed since the writer was killed."""
    with open_objects(url) as objects:
        for entry in list(objects.entries(FOLDER)):
            note = json.loads(objects.read(entry.name)) | {"until": 0.0}
            objects.write(entry.name, [json.dumps(note).encode()])


def kill_the_command(command: subprocess.Popen[str], moment: float) -> None:
    time.sleep(moment)
    command.kill()
    command.wait()
    wait_for(lambda: not workers())


def kill_a_worker() -> None:
    """One of those that are there, or the next one."""
    ended = time.monotonic() + SECONDS
    while not (there := [p for part in WORK for p in ray_processes(part)]):
        if time.monotonic() > ended:
            return
        time.sleep(0.05)
    random.choice(there).kill()


def freeze(server: S3Server) -> None:
    server.freeze()
    time.sleep(AWAY)
    server.thaw()


@contextmanager
def later(moment: float, call: Callable[[], None]) -> Iterator[None]:
    """Call it a while after the beginning, if the end hasn't come."""
    ended = Event()

    def wait() -> None:
        if not ended.wait(moment):
            call()

    thread = Thread(target=wait)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
