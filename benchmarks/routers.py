"""Routers beside each other: which share of a request's KV the replica that gets it has in memory.

Four replicas of the server on this machine, each with memory for a part of all KV; a request is a
question over a few chunks of one topic, and topics are asked for by Zipf's law. Only the router
differs.
"""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any

import httpx
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from fusionrag_integrations import Document, FusionEngine
from fusionrag_integrations.bench.machine import where_and_when
from fusionrag_integrations.bench.throughput.workload import zipf
from fusionrag_integrations.ray import deploying
from fusionrag_integrations.ray.cluster import cluster
from fusionrag_integrations.ray.settings import EngineSettings, Replicas, ServingSettings
from fusionrag_integrations.store.kv.disk_budget import Budgets
from fusionrag_integrations.support.progress import Progress

DEFAULT_REQUEST_ROUTER = "ray.serve._private.request_router:PowerOfTwoChoicesRequestRouter"
ROUTERS: Mapping[str, str] = {
    "random": "benchmarks.ray_routers:Random",
    "two choices (Ray's default)": DEFAULT_REQUEST_ROUTER,
    "prefix affinity (Ray's, for vLLM)": "benchmarks.ray_routers:PrefixAffinity",
    "ours": deploying.ROUTER,
}
LOOPBACK = "127.0.0.1"
_WORDS = 60  # of a chunk


@dataclass(frozen=True, slots=True)
class Workload:
    """topics, chunks: how many topics there are, and chunks of each. asked: chunks of a request, in
    any order. popularity: the exponent of Zipf's law. memory: of each replica, as a share of all
    KV. warm_up, requests: before and while hits are counted, `clients` at a time.
    """

    replicas: int = 4
    topics: int = 40
    chunks: int = 8
    asked: int = 4
    popularity: float = 0.8
    memory: float = 0.25
    warm_up: int = 200
    requests: int = 600
    clients: int = 8
    seed: int = 0

    def texts(self) -> list[list[str]]:
        """Invented chunks, by topic."""
        drawn = Random(self.seed)
        return [
            [
                f"Topic {topic}, part {part}. "
                + " ".join(f"w{drawn.randrange(500)}" for _ in range(_WORDS))
                for part in range(self.chunks)
            ]
            for topic in range(self.topics)
        ]

    def prompts(self) -> list[str]:
        """Of all requests, the same for each router."""
        drawn = np.random.default_rng(self.seed)
        texts = self.texts()
        count = self.warm_up + self.requests
        asked = drawn.choice(self.topics, count, p=zipf(self.topics, self.popularity))
        prompts: list[str] = []
        for number, topic in enumerate(asked.tolist()):
            parts = drawn.permutation(self.chunks)[: self.asked]
            pieces = [*(texts[topic][part] for part in parts), f"Question {number}?"]
            prompts.append("\n\n".join(pieces))
        return prompts


def compare_routers(
    model: Path,
    workload: Workload,
    routers: Sequence[str],
    progress: Progress,
) -> dict[str, Any]:
    """A row a router."""
    with tempfile.TemporaryDirectory(prefix="routers") as directory:
        store = Path(directory, "store")
        with FusionEngine.from_pretrained(model, store=store, chunk_tokens=400) as engine:
            engine.ingest(
                Document(f"{topic}-{part}", text)
                for topic, texts in enumerate(workload.texts())
                for part, text in enumerate(texts)
            )
            name, nbytes = engine.model_name, engine.metrics().disk.bytes
        budgets = Budgets(host=int(workload.memory * nbytes), starts=0)
        settings = ServingSettings(
            EngineSettings(str(model), str(store), budgets=budgets),
            replicas=Replicas(workload.replicas, workload.replicas, cpus=0.1),
        )
        with (
            tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as short,  # for sockets' paths
            cluster(None, num_cpus=workload.replicas, _temp_dir=short),
        ):
            port = _free_port()
            deploying.listen(LOOPBACK, port)
            url = f"http://{LOOPBACK}:{port}"
            rows = []
            for number, router in enumerate(routers):
                rows.append({"router": router, **_measured(settings, workload, router, url)})
                progress("routers", number + 1, len(routers))
    return {
        **where_and_when(),
        "ray": version("ray"),
        "model": name,
        "kv_bytes": nbytes,
        "workload": asdict(workload),
        "rows": rows,
    }


def _measured(
    settings: ServingSettings, workload: Workload, router: str, url: str
) -> dict[str, Any]:
    from ray import serve

    application = deploying.application(settings, router, ROUTERS[router])
    serve.run(application, name=deploying.APPLICATION)
    prompts = workload.prompts()
    with (
        httpx.Client(base_url=url, timeout=600) as client,
        ThreadPoolExecutor(workload.clients) as pool,
    ):

        def ask(prompt: str) -> None:
            body = {"prompt": prompt, "max_tokens": 1, "break_even": False}
            client.post("/v1/completions", json=body).raise_for_status()

        list(pool.map(ask, prompts[: workload.warm_up]))
        before = _counts(client)
        list(pool.map(ask, prompts[workload.warm_up :]))
        after = _counts(client)
    serve.delete(deploying.APPLICATION)
    hits, reads = (after[of] - before.get(of, 0) for of in ("memory", "disk"))
    of_each = [after[of] - before.get(of, 0) for of in after if of.startswith("requests ")]
    of_each += [0] * (workload.replicas - len(of_each))
    return {
        "memory_hit_rate": hits / (hits + reads),
        "hits": hits,
        "reads": reads,
        "requests_by_replica": sorted(of_each, reverse=True),
    }


def _counts(client: httpx.Client) -> dict[str, int]:
    """Records that were in memory, those read from disk, and requests of each replica, so far."""
    counts: dict[str, int] = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            labels = sample.labels
            if sample.name == "fusionrag_kv_hits_total":
                of = "disk" if labels["tier"] == "disk" else "memory"
            elif labels.get("endpoint") == "/v1/completions":
                of = f"requests {labels['replica']}"
            else:
                continue
            counts[of] = counts.get(of, 0) + int(sample.value)
    return counts


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
    return port
