"""A replica's parameters from the results in docs/benchmarks; what isn't measured is assumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.scale.ingest import IngestWork
from benchmarks.scale.kv_bytes import bytes_a_token, record_bytes
from benchmarks.scale.parameters import Service, Speed
from fusionrag_integrations.bench.shapes import SHAPES
from fusionrag_integrations.support.inputs import parse_json

MODEL = "qwen2.5-7b"
RECOMPUTED = 0.15

# Assumed: nobody has measured these yet.
DECODE_TOGETHER = 8  # requests that share a step of decode at the time that one alone takes
OBJECT_STORAGE = Speed(latency_s=0.03, bytes_s=5e9)  # of a network of 100 Gbit/s, less than half
OBJECT_SHARED_BYTES_S = 200e9
DISK_LATENCY_S = 0.0002


def services(results: Path) -> dict[str, Any]:
    """`reuse` and `full_attention` on an H100, as plain values, with what each rests on.

    results: docs/benchmarks.
    """
    host, decode, store = (
        _read(results / "h100" / f"{n}.json") for n in ("ttft-host", "decode", "store")
    )
    layers = SHAPES[MODEL]().num_hidden_layers
    fit = host["fit"]
    (cold,) = [row for row in store["load"]["rows"] if row["files"] == "cold"]
    step = decode["placed_ms"] / 1e3
    reuse = Service(
        bytes_a_token=bytes_a_token(MODEL, "bfloat16"),
        recomputed=RECOMPUTED,
        fixed_s=fit["fixed_ms"] / 1e3,
        row_s=fit["ms_a_row"] / 1e3,
        pair_s=fit["ms_a_million_keys"] * layers / 1e9,
        decode_step_s=step,
        decode_device_s=step / DECODE_TOGETHER,
        disk=Speed(DISK_LATENCY_S, cold["verified_mb_s"] * 1e6),
        object_storage=OBJECT_STORAGE,
        object_shared_bytes_s=OBJECT_SHARED_BYTES_S,
    )
    row_s, pair_s = _full_attention(host["rows"])
    full = {"recomputed": 1.0, "fixed_s": 0.0, "row_s": row_s, "pair_s": pair_s}
    return {
        "model": MODEL,
        "hardware": host["hardware"],
        "reuse": asdict(reuse),
        "full_attention": asdict(reuse) | full,
        "measured": {
            "fixed_s, row_s, pair_s": "h100/ttft-host.json: fit; full attention's two rows",
            "decode_step_s": "h100/decode.json: placed_ms",
            "disk.bytes_s": "h100/store.json: verified reads of cold files",
        },
        "assumed": ["decode_device_s", "disk.latency_s", "object_storage", "object_shared_bytes_s"],
    }


def ingest_works(results: Path) -> dict[str, IngestWork]:
    """An ingest's parts by machine; chunks of 256 tokens.

    Passes are those of `h100/offline.json` and `cpu/offline.json`. The driver's part was measured
    on the CPU machine for both. All neighbours' KV is assumed to be read from storage.
    """
    driver_s = _read(results / "scale" / "driver.json")["ms_a_chunk"] / 1e3
    works = {}
    for machine in ("h100", "cpu"):
        offline = _read(results / machine / "offline.json")
        model, kv_format = offline["model"], offline["dtype"]
        works[machine] = IngestWork(
            isolated_s=offline["isolated_together_ms"] / 1e3,
            fused_s=offline["fused_together_ms"] / 1e3,
            driver_s=driver_s,
            record_bytes=record_bytes(model, kv_format, offline["chunk_tokens"]),
            read_records=offline["neighbours"],
            worker_bytes_s=OBJECT_STORAGE.bytes_s,
            shared_bytes_s=OBJECT_SHARED_BYTES_S,
        )
    return works


def _full_attention(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Seconds a token, and a pair, that give full attention's two measured times exactly."""
    (n, s), (m, t) = [
        (row["rows"], row["ttft_ms"] / 1e3) for row in rows if row["strategy"] == "full_attention"
    ]
    pair_s = 2 * (t / m - s / n) / (m - n)
    return s / n - pair_s * n / 2, pair_s


def _read(path: Path) -> Mapping[str, Any]:
    found: Mapping[str, Any] = parse_json(path.read_text(encoding="utf-8"))
    return found
