"""`index --ray`: real workers, into a directory and into S3, some of them killed on the way."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from fusionrag_integrations import Store
from fusionrag_integrations.documents.embedding import LexicalEmbedder
from fusionrag_integrations.errors import FusionRAGError, StoreBusyError
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.ray.indexing import index_on_ray, stages
from fusionrag_integrations.store.catalog import Catalog
from fusionrag_integrations.store.kv.local import LocalKVFiles
from fusionrag_integrations.store.layout import CATALOG_FILE, KV_DIRECTORY
from fusionrag_integrations.store.verify import find_damage
from tests.cluster.conftest import S3Server
from tests.cluster.ray_ingest import (
    MANY,
    SECONDS,
    TWO,
    account,
    answers,
    driver,
    fusionrag,
    indexed,
    same,
    workers,
)
from tests.cluster.ray_processes import ray_processes, title
from tests.conftest import document_ids
from tests.store.published.sharing import Open
from tests.waiting import until

pytestmark = pytest.mark.enable_socket

PAGE = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text()

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


def test_a_directory_is_filled_as_by_an_ingest_here(
    ray_address: str, model: CausalModel, model_dir: Path, tmp_path: Path, opened: Open
) -> None:
    documents = MANY[:12]
    seen: dict[str, tuple[int, int]] = {}
    report = indexed(
        documents, model_dir, tmp_path / "s", lambda stage, *counts: seen.update({stage: counts})
    )
    local = opened(tmp_path / "local")
    ingested = local.ingest(documents)
    assert replace(report.ingest, seconds=0.0) == replace(ingested, seconds=0.0)
    assert (seen["text"], seen["isolated"], seen["fused"]) == ((12, 12), (36, 36), (36, 36))
    with opened(tmp_path / "s") as made:
        same(made, local)
        assert made.ingest(documents).documents_unchanged == 12
    assert list(find_damage(tmp_path / "s")) == []
    files = LocalKVFiles(tmp_path / "s" / KV_DIRECTORY)
    told = [account(report, name) for name in ("text", "isolated", "fused")]
    assert [(stage.items, stage.found, stage.lost) for stage in told] == [
        (12, 0, 0),
        (36, 0, 0),
        (36, 0, 0),
    ]
    assert sum(stage.kv_bytes for stage in told) == sum(file.nbytes for file in files.entries())
    assert all(stage.seconds > 0 for stage in told)
    assert report.cost == pytest.approx(3.6 * 2 * report.seconds / 3600)


@pytest.mark.long
def test_a_worker_that_is_killed_costs_only_what_it_had_begun(
    ray_address: str,
    s3_server: S3Server,
    url: str,
    model_dir: Path,
    tmp_path: Path,
    opened: Open,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stages, "TASK_PASSES", 1)
    documents = MANY[:12]
    killed: list[int] = []

    def kill_one(stage: str, done: int, total: int) -> None:
        if stage == "isolated" and done and not killed:
            s3_server.freeze()  # so that all are in the middle of something
            time.sleep(1.0)
            victim = next(worker for worker in workers() if "__init__" not in title(worker))
            killed.append(victim.pid)
            victim.send_signal(signal.SIGKILL)
            victim.wait(10)
            s3_server.thaw()

    report = indexed(documents, model_dir, url, kill_one)
    assert killed
    lost = sum(stage.lost for stage in report.stages)
    assert 0 < lost <= 8  # chunks of a pass
    assert account(report, "model").starts >= 3  # facts, the one that was killed, another one
    until(lambda: not ray_processes("Ledger"))
    local = opened(tmp_path / "local")
    local.ingest(documents)
    with opened(url) as made:
        same(made, local)
        assert made.ingest(documents).documents_unchanged == len(documents)
    again = indexed(documents, model_dir, url)
    assert (again.ingest.isolated_computed, again.ingest.fused_computed) == (0, 0)
    assert [stage.stage for stage in again.stages] == ["model"]


@pytest.mark.long
def test_a_document_that_kills_each_worker_ends_it_by_name(
    ray_address: str, model_dir: Path, tmp_path: Path
) -> None:
    def deadly() -> object:  # what is local travels to workers whole
        class Deadly(LexicalEmbedder):
            def embed_documents(self, texts: list[str]) -> list[list[float]]:
                if any("Town number 1 " in text for text in texts):
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().embed_documents(texts)

        return Deadly()

    store = tmp_path / "s"
    with pytest.raises(FusionRAGError, match="Ray gave up"):
        index_on_ray(MANY[:2], model_dir, store, workers=TWO, embedding=deadly)
    with Store.open(store, deadly()) as made:
        assert document_ids(made.catalog) == []


@pytest.mark.long
def test_a_driver_that_is_killed_is_gone_on_from(
    ray_address: str, model_dir: Path, tmp_path: Path, opened: Open
) -> None:
    store, files = tmp_path / "s", tmp_path / "files"
    files.mkdir()
    for document in MANY:
        (files / f"{document.id}.txt").write_text(document.text)
    kv = LocalKVFiles(store / KV_DIRECTORY)
    first = driver(files, store, model_dir, ray_address)
    try:
        until(lambda: kv.directory.is_dir() and len(kv.paths()) > 400)
        first.send_signal(signal.SIGSTOP)
        with pytest.raises(StoreBusyError, match="Another ingest or delete"):
            indexed(MANY, model_dir, store)
    finally:
        first.kill()
        first.wait()
    until(lambda: not workers())
    with Catalog.open(store / CATALOG_FILE) as catalog:
        keys = catalog.kv.keys_by_chunk()
    there = kv.existing(isolated for _, isolated, _ in keys)
    noted = [fused for _, _, fused in keys if fused]
    assert len(keys) == 360
    assert len(there) > 100
    second = driver(files, store, model_dir, ray_address)
    said, _ = second.communicate(timeout=SECONDS * 2)
    assert second.returncode == 0
    report = json.loads(said)
    assert report["isolated_computed"] == 360 - len(there)
    assert report["fused_computed"] == 360 - len(noted)
    assert report["documents_unchanged"] == len(MANY)
    with opened(store) as made:
        assert made.ingest([]).fused_computed == 0
        answers(made)
    assert list(find_damage(store)) == []


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """The page's command that starts Ray, and its files."""
    (found,) = re.findall(r"^fusionrag (index .* --ray --workers 2)$", PAGE, re.MULTILINE)
    (tmp_path / "docs").mkdir()
    for document in MANY[:40]:
        (tmp_path / "docs" / f"{document.id}.txt").write_text(document.text)
    return shlex.split(found)


def starts(first: subprocess.Popen[str], part: str) -> None:
    """Wait until this part of Ray runs."""
    process = psutil.Process(first.pid)
    until(lambda: any(part in title(child) for child in process.children(recursive=True)))


def ends(first: subprocess.Popen[str], sig: signal.Signals, status: int) -> None:
    """The signal ends the command and all that it started, which it tells of in one line."""
    rays = psutil.Process(first.pid).children(recursive=True)
    first.send_signal(sig)
    while first.poll() is None:
        with suppress(psutil.NoSuchProcess):
            rays += psutil.Process(first.pid).children(recursive=True)
        time.sleep(0.1)
    _, told = first.communicate(timeout=SECONDS)
    assert first.returncode == status
    assert told.splitlines()[-1].endswith("run the command again to go on.")
    assert "***" not in told  # as of a crash
    until(lambda: not any(process.is_running() for process in rays))


@pytest.mark.long
@pytest.mark.parametrize(("sig", "status"), SIGNALS)
def test_the_pages_command_ends_ray_when_it_is_ended_while_ray_starts(
    tmp_path: Path, command: list[str], sig: signal.Signals, status: int
) -> None:
    first = fusionrag(*command, cwd=tmp_path, stderr=subprocess.PIPE)
    starts(first, "raylet/raylet")
    ends(first, sig, status)
    assert not (tmp_path / "my-store").exists()


@pytest.mark.long
def test_the_pages_command_starts_ray_here_and_may_be_interrupted(
    tmp_path: Path, command: list[str]
) -> None:
    store = tmp_path / "my-store"
    for sig, status in SIGNALS:
        first = fusionrag(*command, cwd=tmp_path, stderr=subprocess.PIPE)
        starts(first, "Worker(")
        ends(first, sig, status)
    second = fusionrag(*command, "--json", "--price-per-hour", "3.6", cwd=tmp_path)
    said, _ = second.communicate(timeout=SECONDS * 2)
    report = json.loads(said)
    assert report["documents_new"] + report["documents_unchanged"] == 40
    assert report["workers"] == 2
    assert report["cost"] == pytest.approx(3.6 * 2 * report["wall_seconds"] / 3600)
    assert list(find_damage(store)) == []
