"""What a document shows of simulations past one machine and of costs; see `report.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.results.marks import Mark
from fusionrag_integrations.bench.tables import markdown

Row = Mapping[str, Any]


def overlap(mark: Mark) -> str:
    headings = ("questions of", "questions", "topics", "passages", "own", "same topic", "other")
    lines = [
        (
            *(work["name"], *(str(found[n]) for n in ("questions", "topics", "passages"))),
            *(_share(found[name]) for name in ("own", "same_topic", "other_topic")),
        )
        for work in mark.only["workloads"]
        if (found := work["overlap"]) is not None
    ]
    return markdown(headings, lines)


def hits(mark: Mark) -> str:
    """Hit rates of memory by policy and workload, and over random's."""
    return _by_workload(mark, lambda row: f"{row['hits']['memory']:.3f} ({row['of_random']:.2f}x)")


def times(mark: Mark) -> str:
    """TTFT by policy and workload: median and 99th percentile, in milliseconds."""
    return _by_workload(
        mark, lambda row: f"{1e3 * row['ttft_p50_s']:,.0f} / {1e3 * row['ttft_p99_s']:,.0f}"
    )


def hindsight(mark: Mark) -> str:
    """Hit rates of memory beside those of placements, and over random's."""
    rows = mark.only["rows"]
    ways = [name for name in rows[0] if name != "name"]
    lines = [
        (row["name"], *(f"{row[way]:.3f} ({row[way] / row['random']:.2f}x)" for way in ways))
        for row in rows
    ]
    return markdown(("prompts", *ways), lines)


def _by_workload(mark: Mark, cell: Any) -> str:
    works = mark.only["workloads"]
    columns = [[cell(row) for row in work["rows"]] for work in works]
    names = [row["policy"] for row in works[0]["rows"]]
    lines = [(name, *cells) for name, *cells in zip(names, *columns, strict=True)]
    return markdown(("policy", *(work["name"] for work in works)), lines)


def serving(mark: Mark) -> str:
    headings = ("replicas", "policy", "offered/s", "answered/s", "memory", "disk", "object storage")
    lines = [
        (
            *(str(row["replicas"]), row["policy"]),
            *(f"{row[name]:,.1f}" for name in ("offered_per_s", "requests_per_s")),
            *((_share(v) for v in row["hits"].values()) if any(row["hits"].values()) else [""] * 3),
            *(f"{1e3 * row[name]:,.0f}" for name in ("ttft_p50_s", "ttft_p99_s", "wait_s")),
            *(_share(row["utilisation"]), f"{row['busiest']:.2f}"),
        )
        for row in mark.only["rows"]
    ]
    times = ("TTFT p50 (ms)", "p99", "wait", "busy", "busiest")
    return markdown((*headings, *times), lines)


def ingest(mark: Mark) -> str:
    headings = ("passes of", "workers", "chunks/s", "speed-up", "workers compute")
    lines = [
        (
            *(row["machine"], str(row["workers"]), f"{row['chunks'] / row['seconds']:,.2f}"),
            *(f"{row['speedup']:.2f}x", _share(row["busy"])),
        )
        for row in mark.only["rows"]
    ]
    return markdown(headings, lines)


def kv_bytes(mark: Mark) -> str:
    rows = mark.only["kv_bytes"]
    formats = [name for name in rows[0] if name != "model"]
    chunk = mark.only["chunk_tokens"]
    lines = [
        (
            row["model"],
            *(f"{row[name]:,.0f}" for name in formats),
            *(f"{row[name] * chunk / 1e6:.2f}" for name in formats),
        )
        for row in rows
    ]
    headings = (*formats, *(f"{name} (MB a chunk)" for name in formats))
    return markdown(("model", *headings), lines)


def corpora(mark: Mark) -> str:
    headings = (
        "format",
        "chunks",
        "KV (TB)",
        "storage ($ a month)",
        "ingest (GPU hours)",
        "ingest ($)",
    )
    lines = [
        (
            *(row["kv_format"], f"{row['chunks']:,}", f"{row['kv_bytes'] / 1e12:,.1f}"),
            *(_figure(row[name]) for name in ("storage_month", "ingest_gpu_hours", "ingest")),
        )
        for row in mark.only["corpora"]
    ]
    return markdown(headings, lines)


def break_even(mark: Mark) -> str:
    headings = ("format", "prompt", "full attention (ms)", "15% (ms)", "saved (ms)")
    lines = [
        (
            *(row["kv_format"], f"{row['prompt_tokens']:,}"),
            *(f"{1e3 * row[n]:,.0f}" for n in ("full_attention_s", "reuse_s", "saved_s")),
            "never" if row["uses_a_month"] is None else f"{row['uses_a_month']:,.0f}",
            "never" if row["bytes_s"] is None else f"{row['bytes_s'] / 1e9:.1f}",
        )
        for row in mark.only["break_even"]
    ]
    return markdown((*headings, "uses of a chunk a month", "link (GB/s)"), lines)


def serving_cost(mark: Mark) -> str:
    rows = mark.only["serving"]
    ways = list(dict.fromkeys(row["way"] for row in rows))
    lines: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        key = (f"{row['prompt_tokens']:,}", f"{row['requests']:,}")
        lines.setdefault(key, []).append(f"{row['replicas']:,} / {_figure(row['dollars'])}")
    return markdown(
        ("prompt", "requests a month", *ways), [(*key, *cells) for key, cells in lines.items()]
    )


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.2f}"
