"""Replicas over S3 while some are killed, or the storage is away, at random moments."""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pytest

from fusionrag_integrations import AnswerSettings, FusionEngine
from fusionrag_integrations.documents.types import DocumentKey
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.ray import deploying
from fusionrag_integrations.ray.indexing import Workers, index_on_ray
from fusionrag_integrations.ray.settings import EngineSettings, Replicas, ServingSettings
from fusionrag_integrations.store import Budgets
from fusionrag_integrations.store.kv.local import LocalKVFiles
from fusionrag_integrations.store.layout import KV_DIRECTORY
from tests.cluster.conftest import S3Server, bucket
from tests.cluster.ray_processes import ray_processes
from tests.cluster.serving import Served, model, written_keys
from tests.conftest import town
from tests.waiting import until

pytestmark = [pytest.mark.enable_socket, pytest.mark.long, pytest.mark.timeout(0)]

Report = Callable[[str, str, object, object], None]
DOCUMENTS = [town(number) for number in range(4)]
PROMPTS = [f"{document.text}\n\nWhich house?" for document in DOCUMENTS]
KINDS = ["replica"] * 20 + ["storage"] * 5 + ["both"] * 5
AWAY = 30.0  # seconds that the storage answers nothing
TOKENS = 4
RECORDS = 5  # of KV, of which a replica's memory has room for so many

Obtained = tuple[int, int, int]
"""From how many chunks' fused KV an answer came, from how many isolated, how many were missed."""


def test_replicas_disturbed(
    ray_port: int, s3_server: S3Server, model_dir: Path, tmp_path: Path, report: Report
) -> None:
    path, url = model(tmp_path / "model", model_dir, 0), f"{bucket()}/store"
    index_on_ray(DOCUMENTS, path, url, workers=Workers(2), chunk_tokens=48)
    right, keys = all_answers(path, tmp_path / "store"), tmp_path / "keys.toml"
    nbytes = max(file.nbytes for file in LocalKVFiles(tmp_path / "store" / KV_DIRECTORY).entries())
    with FusionEngine.from_pretrained(path, store=tmp_path / "store") as alone:
        settings = ServingSettings(
            EngineSettings(str(path), url, budgets=Budgets(host=RECORDS * nbytes, disk=0)),
            written_keys(keys),
            replicas=Replicas(2, 2, cpus=0.1),
        )
        served = Served(ray_port, keys, settings, alone, deploying.deploy(settings))
        obtained, wrong = Counter[Obtained](), list[str]()
        done = threading.Event()

        def load(seed: int) -> None:
            chance = random.Random(seed)
            while not done.is_set():
                number = chance.randrange(len(PROMPTS))
                response = served.ask(body={"prompt": PROMPTS[number], "max_tokens": TOKENS})
                if response.status_code != 200:
                    wrong.append(response.text)
                    continue
                told = response.json()
                chunks = told["fusionrag"]["chunks"]
                how = chunks["fused"], chunks["isolated"], chunks["missed"]
                obtained[how] += 1
                if told["choices"][0]["text"] not in right[number][how]:
                    wrong.append(f"{how}: {told}")

        with ThreadPoolExecutor(3) as pool:
            loads = [pool.submit(load, seed) for seed in range(3)]
            try:
                chance = random.Random(0)
                for kind in chance.sample(KINDS, len(KINDS)):
                    time.sleep(chance.uniform(0.0, 2.0))
                    disturb(kind, s3_server, chance)
                    until(lambda: len(served.now()) == 2)
            finally:
                done.set()
            for each in loads:
                each.result()
        ended = deploying.end(served.deployed)
    assert ended
    missed = sum(count for (_, _, missed), count in obtained.items() if missed)
    whole = sum(obtained.values()) - missed
    report(
        "Kills",
        "Replicas on Ray of a store in S3, which Ray has filled, under load: a replica killed at a "
        f"random moment, the storage away for {AWAY:.0f} s, or both",
        f"{KINDS.count('replica')}, {KINDS.count('storage')} and {KINDS.count('both')} times, "
        f"{whole:,} answers with the KV of all chunks, {missed:,} with some that couldn't be read",
        f"{len(wrong)} wrong or failed",
    )
    assert whole
    assert missed
    assert wrong == []


def all_answers(path: Path, store: Path) -> list[dict[Obtained, set[str]]]:
    """To each prompt, by what KV of its chunks can be read."""
    loaded = CausalModel.load(path)
    with FusionEngine.open(loaded, store, chunk_tokens=48) as engine:
        engine.ingest(DOCUMENTS)
    right: list[dict[Obtained, set[str]]] = []
    for document, prompt in zip(DOCUMENTS, PROMPTS, strict=True):
        answers: dict[Obtained, set[str]] = defaultdict(set)
        for lacking in product(range(3), repeat=3):  # of each chunk nothing, fused KV, or both
            copy = store.with_name("copy")
            shutil.copytree(store, copy)
            with FusionEngine.open(loaded, copy) as engine:
                catalog = engine.store.catalog
                ids = catalog.chunks.ids([DocumentKey(document.id)])
                kept = {chunk: (fused, kv) for chunk, kv, fused in catalog.kv.keys_by_chunk()}
                for chunk, count in zip(ids, lacking, strict=True):
                    for key in kept[chunk][:count]:
                        engine.kv.delete(key)
                answer = engine.answer(prompt, AnswerSettings(max_tokens=TOKENS))
            how = answer.fused_chunks, answer.isolated_chunks, answer.missed_chunks
            answers[how].add(answer.text)
            shutil.rmtree(copy)
        right.append(answers)
    return right


def disturb(kind: str, server: S3Server, chance: random.Random) -> None:
    try:
        if kind != "replica":
            server.freeze()
        if kind != "storage":
            chance.choice(ray_processes("ServeReplica:fusionrag:replica")).kill()
        if kind != "replica":
            time.sleep(AWAY)
    finally:
        server.thaw()
