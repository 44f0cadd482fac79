"""Throughput as a table in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fusionrag_integrations.bench.tables import markdown

_HEADINGS = (
    *("load", "system", "ratio", "requests/s", "spread", "tokens/s"),
    *("TTFT p50 (ms)", "p99", "between tokens p50 (ms)", "p99", "memory (GB)", "errors"),
)


def throughput_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line a system and load, loads in the order of the rows."""
    return markdown(_HEADINGS, [_cells(row) for row in rows])


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    clients, low_high = row["clients"], row["spread_requests_per_s"]
    load = (
        f"{row['arrivals_per_s']:.3g}/s ({row['share']:.0%} of peak)"
        if clients is None
        else f"{clients} client{'s' if clients > 1 else ''}"
    )
    device = row["peak_device_bytes"]
    return (
        load,
        f"{row['system']}, {row['way']}" if row["ratio"] is None else row["system"],
        "" if row["ratio"] is None else f"{row['ratio']:.0%}",
        f"{row['requests_per_s']:.3g}",
        f"{low_high[0]:.3g}-{low_high[1]:.3g}",
        f"{row['tokens_per_s']:.3g}",
        *(_number(row[name]) for name in ("ttft_p50_ms", "ttft_p99_ms")),
        *(_number(row[name]) for name in ("tbt_p50_ms", "tbt_p99_ms")),
        _gigabytes(row["peak_bytes"]) + ("" if device is None else f" + {_gigabytes(device)}"),
        str(row["errors"]),
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}"


def _gigabytes(count: int | None) -> str:
    return "?" if count is None else f"{count / 1e9:.1f}"
