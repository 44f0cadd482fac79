"""What maintainers measure, as Markdown tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from fusionrag_integrations.bench.tables import markdown

KERNEL_TIMES = ("sparse_ms", "in_place_ms", "masked_ms", "flex_ms", "dense_ms")


def kernel_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line a number of keys and share of rows, with how much quicker than others ours is."""
    headings = (
        "keys",
        "ratio",
        "rows",
        *KERNEL_TIMES,
        "dense / sparse",
        "masked / sparse",
        "error",
    )
    lines = [
        (
            *(f"{row['keys']:,}", f"{row['ratio']:.0%}", f"{row['rows']:,}"),
            *("" if row[name] is None else f"{row[name]:.3g}" for name in KERNEL_TIMES),
            f"{row['dense_ms'] / row['sparse_ms']:.2f}x",
            "" if row["masked_ms"] is None else f"{row['masked_ms'] / row['sparse_ms']:.2f}x",
            "" if row["error"] is None else f"{row['error']:.1e}",
        )
        for row in rows
    ]
    return markdown(headings, lines)


def store_markdown(result: Mapping[str, Any]) -> str:
    """What was measured of a store: reads of files, lookups, and requests from each tier."""
    parts = []
    if load := result.get("load"):
        parts.append(load_markdown(load))
    if lookup := result.get("lookup"):
        parts.append(
            f"{lookup['lookups']:,} lookups of small records among {lookup['records']:,}: median "
            f"{lookup['p50_ms']:.2f} ms, 99th percentile {lookup['p99_ms']:.2f} ms (plain reads of "
            f"the files: {lookup['plain_p50_ms']:.2f} and {lookup['plain_p99_ms']:.2f} ms)."
        )
    if rows := result.get("rows"):
        parts.append(prefetch_markdown(rows))
    return "\n\n".join(parts)


def load_markdown(load: Mapping[str, Any]) -> str:
    """One line a state of the files and of memory: speeds of plain reads and of verified ones."""
    headings = ("files", "memory", "plain (MB/s)", "quartiles", "verified", "quartiles")
    lines = [
        (
            *(row["files"], row["memory"]),
            *(f"{row['plain_mb_s']:,.0f}", _between(row["plain_spread"], ",.0f")),
            *(f"{row['verified_mb_s']:,.0f}", _between(row["verified_spread"], ",.0f")),
            *(f"{row['ratio']:.0%}", _between(row["ratio_spread"], ".0%")),
        )
        for row in load["rows"]
    ]
    return markdown((*headings, "verified / plain", "quartiles"), lines)


def prefetch_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line a tier, with and without a prefetch: TTFT from token ids, and waits for reads."""
    headings = ("KV on", "prefetch", "TTFT (ms)", "quartiles", "reads", "waited", "fits", "hidden")
    lines = [
        (
            *(row["tier"], "yes" if row["prefetch"] else "no"),
            *(f"{row['ttft_ms']:.1f}", _between(row["spread_ms"], ".1f")),
            *(f"{row['read_ms']:.1f}", f"{row['waited_ms']:.1f}"),
            "" if row["fits_ms"] is None else f"{row['fits_ms']:.1f}",
            "" if row["hidden"] is None else f"{row['hidden']:.0%}",
        )
        for row in rows
    ]
    return markdown(headings, lines)


def _between(bounds: Sequence[float], form: str) -> str:
    return f"{bounds[0]:{form}}-{bounds[1]:{form}}"


def formats_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line a format: bytes, milliseconds a chunk, and how far its KV is off."""
    headings = (
        *("format", "bytes a token", "of 16 bits", "of 16 bits, 7B shape"),
        *("load (ms)", "load and place (ms)", "error", "error, fused"),
    )
    lines = [
        (
            row["kv_format"],
            f"{row['bytes_a_token']:,.0f}",
            *(f"{row[name]:.3f}x" for name in ("of_16_bits", "in_shape")),
            *(f"{row[name]:.2f}" for name in ("load_ms", "place_ms")),
            *(f"{row[name]:.1e}" if row[name] else "0" for name in ("error", "fused_error")),
        )
        for row in rows
    ]
    return markdown(headings, lines)


def format_scores_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line a format and kind of question; for each ratio F1, EM, and F1 beside float32's."""
    ratios = sorted({row["ratio"] for row in rows})
    lines: dict[tuple[str, str, str], dict[float, str]] = {}
    for row in rows:
        line = lines.setdefault((row["kind"], row["kv_format"], str(row["n"])), {})
        line[row["ratio"]] = f"{row['f1']:.3f} / {row['em']:.3f}"
        if row["kv_format"] != "float32":
            low, high = row["ci"]
            line[row["ratio"]] += f" ({row['difference']:+.3f}: {low:+.3f} to {high:+.3f})"
    headings = ("questions", "format", "n", *(f"F1 / EM, {ratio:.0%}" for ratio in ratios))
    return markdown(headings, [[*name, *(line[r] for r in ratios)] for name, line in lines.items()])


def shared_markdown(result: Mapping[str, Any]) -> str:
    """One line a way: where KV is, the time to first token, and what a prefetch hides."""

    def line(name: str, times: Mapping[str, Any], hidden: str = "") -> Sequence[str]:
        low, high = times["spread_ms"]
        return name, f"{times['ttft_ms']:.0f}", f"{low:.0f} to {high:.0f}", hidden

    lines = [
        line("in a directory on this disk", result["directory"]),
        line("in object storage", result["first"]),
        *(
            line(
                f"in object storage, with a prefetch {each['gap_ms']:.0f} ms before",
                each["times"],
                "{:.0%} ({:.0%} to {:.0%})".format(*each["hidden"]),
            )
            for each in result["prefetched"]
        ),
        line("copied to this disk by an earlier request", result["second"]),
    ]
    return markdown(("KV is", "TTFT (ms)", "quartiles", "hidden"), lines)


def ray_ingest_markdown(result: Mapping[str, Any]) -> str:
    """One line a way and a number of workers: medians over turns, beside the fastest and slowest.

    With how many times as fast two are as one.
    """
    names = {"ray": "`index --ray`", "processes": "plain processes, isolated KV alone"}
    lines = []
    for how, name in names.items():
        for workers in (1, 2):
            turns = [t for t in result["turns"] if (t["how"], t["workers"]) == (how, workers)]
            rates = [turn["chunks_per_second"] for turn in turns]
            times = result["speedup"][how] if workers == 2 else 1.0
            spread = f"{min(rates):.2f} to {max(rates):.2f}"
            lines.append((name, str(workers), f"{median(rates):.2f}", spread, f"{times:.2f}x"))
    return markdown(("ingest by", "workers", "chunks/s", "of all turns", "speed-up"), lines)


def routers_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line a router: KV found in memory, and how evenly requests were spread."""
    headings = ("router", "KV in memory", "read from disk", "requests of each replica")
    lines = [
        (
            row["router"],
            f"{row['memory_hit_rate']:.1%}",
            f"{row['reads']:,}",
            ", ".join(f"{count:,}" for count in row["requests_by_replica"]),
        )
        for row in rows
    ]
    return markdown(headings, lines)
