"""What docs/scale.md shows, as plain values, each from the results that it rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.scale.dollars import Prices, break_even, corpus_cost, serving_month
from benchmarks.scale.hindsight import compare_with_hindsight
from benchmarks.scale.ingest import ingest
from benchmarks.scale.kv_bytes import CHUNK_TOKENS, FORMATS, MODELS, bytes_a_token, record_bytes
from benchmarks.scale.measured import MODEL, ingest_works, services
from benchmarks.scale.parameters import Service, service_from
from benchmarks.scale.prompts import InventedTopics, Prompt, Prompts
from benchmarks.scale.questions import as_prompts, overlap, read_questions
from benchmarks.scale.routing import Setting, compare
from benchmarks.scale.serving import LONG, Plan, serve

OWN_SHARES = (0.5, 0.7, 0.9)
SLOW_BYTES_S = 1.25e9  # of object storage, by a network of 10 Gbit/s
WORKERS = (1, 2, 4, 8, 16)
INGESTED = 2_000  # chunks of a simulated ingest
CORPORA = tuple(10**power for power in range(4, 10))
PROMPTS = (4_010, 10_304, 27_104)  # tokens; the first and the last are measured lengths
OWN_TOKENS = 100
OUTPUT_TOKENS = 64
REQUESTS_A_MONTH = (10**5, 10**6, 10**7, 10**8)


def both_services(results: Path) -> tuple[Service, Service]:
    """With kept KV, and full attention. results: docs/benchmarks."""
    values = services(results)
    return (
        service_from(values["reuse"], "reuse"),
        service_from(values["full_attention"], "full_attention"),
    )


def routing(results: Path, questions: Sequence[Path], setting: Setting) -> dict[str, Any]:
    """Every policy, over the questions of these files and over invented topics."""
    service, _ = both_services(results)
    workloads: list[dict[str, Any]] = []
    for path in questions:
        asked = read_questions(path)
        rows = compare(as_prompts(asked), service, setting)
        workloads.append({"name": path.stem, "overlap": asdict(overlap(asked)), "rows": rows})
    for name, (prompts, served) in invented_workloads(service).items():
        rows = compare(prompts, served, setting)
        workloads.append({"name": name, "overlap": None, "rows": rows})
    return {"setting": asdict(setting), "workloads": workloads}


def hindsight(
    results: Path, questions: Sequence[Path], setting: Setting, steps: int
) -> dict[str, Any]:
    """The package's own policy beside placements, over these questions and invented topics."""
    service, _ = both_services(results)
    workloads: dict[str, Prompts] = {
        path.stem: as_prompts(read_questions(path)) for path in questions
    } | {_own(share): InventedTopics(own_share=share) for share in OWN_SHARES}
    return {
        "setting": asdict(setting),
        "steps": steps,
        "rows": [
            {"name": name, **compare_with_hindsight(prompts, service, setting, steps)}
            for name, prompts in workloads.items()
        ],
    }


def invented_workloads(service: Service) -> Mapping[str, tuple[Prompts, Service]]:
    """Prompts of invented topics, each with what serves them."""
    slow = replace(service, object_storage=replace(service.object_storage, bytes_s=SLOW_BYTES_S))
    return {_own(share): (InventedTopics(own_share=share), service) for share in OWN_SHARES} | {
        "long prompts": (LONG, service),
        "long prompts, 10 Gbit/s": (LONG, slow),
    }


def _own(share: float) -> str:
    return f"topics, {share:.0%} own"


def serving(results: Path, plan: Plan) -> dict[str, Any]:
    """1 to 256 replicas."""
    reuse, full = both_services(results)
    return {
        "plan": asdict(plan),
        "prompts": asdict(LONG),
        "service": services(results),
        "rows": list(serve(LONG, reuse, full, plan)),
    }


def ingesting(results: Path) -> dict[str, Any]:
    """1 to 16 workers, on each machine that an ingest was measured on."""
    rows = []
    for machine, work in ingest_works(results).items():
        one = ingest(work, INGESTED, 1).seconds
        for workers in WORKERS:
            run = ingest(work, INGESTED, workers)
            rows.append({"machine": machine, "speedup": one / run.seconds, **asdict(run)})
    works = {machine: asdict(work) for machine, work in ingest_works(results).items()}
    return {"works": works, "rows": rows}


def costs(results: Path, prices: Prices) -> dict[str, Any]:
    """Bytes, dollars and break-even."""
    pair, work = both_services(results), ingest_works(results)["h100"]
    works = {name: replace(work, record_bytes=record_bytes(MODEL, name)) for name in FORMATS}
    return {
        "prices": asdict(prices),
        "model": MODEL,
        "chunk_tokens": CHUNK_TOKENS,
        "kv_bytes": [
            {"model": model, **{name: bytes_a_token(model, name) for name in FORMATS}}
            for model in MODELS
        ],
        "corpora": [
            {"kv_format": name, **asdict(corpus_cost(chunks, works[name], prices))}
            for name in ("bfloat16", "int4")
            for chunks in CORPORA
        ],
        "break_even": [
            {"kv_format": name, **asdict(break_even(tokens, OWN_TOKENS, works[name], pair, prices))}
            for name in FORMATS
            for tokens in PROMPTS
        ],
        "serving": _serving_cost(pair, prices),
    }


def _serving_cost(pair: tuple[Service, Service], prices: Prices) -> list[Mapping[str, Any]]:
    nothing = replace(pair[0], recomputed=0.0)
    ways = {"15% recomputed": pair[0], "0% recomputed": nothing, "full attention": pair[1]}
    rows: list[Mapping[str, Any]] = []
    for tokens in PROMPTS[1:]:
        prompt = Prompt({"all": tokens - OWN_TOKENS}, OWN_TOKENS, OUTPUT_TOKENS)
        for requests in REQUESTS_A_MONTH:
            for way, service in ways.items():
                replicas, dollars = serving_month(requests, service, prices, prompt)
                row = {"requests": requests, "prompt_tokens": tokens, "way": way}
                rows.append(row | {"replicas": replicas, "dollars": dollars})
    return rows
