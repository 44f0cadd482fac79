"""Throughput as a table in Markdown, and what else was measured in lines of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fusionrag_integrations.bench.tables import markdown

_HEADINGS = (
    *("load", "system", "ratio", "requests/s", "spread", "tokens/s"),
    *("TTFT p50 (ms)", "p99", "between tokens p50 (ms)", "p99", "memory (GB)", "errors"),
)


def throughput_report(result: Mapping[str, Any]) -> str:
    """All that was measured: the table, the limits, and what the first of failed requests said."""
    failed = [
        f"{row['system']}, {row['way']}: {row['first_error']}"
        for row in result["rows"]
        if row["errors"]
    ]
    fastest = f"The fastest way to full attention: {result['fastest_full_attention']}."
    lines = [throughput_markdown(result["rows"]), "", fastest, *limits_lines(result), *failed]
    return "\n".join(lines)


def throughput_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line a system and load, loads in the order of the rows."""
    return markdown(_HEADINGS, [_cells(row) for row in rows])


def limits_lines(result: Mapping[str, Any]) -> list[str]:
    """A line for each ratio's bound, and one for short prompts behind long ones."""
    lines = [
        f"At {bound['ratio']:.0%}, {bound['prefill_ms']:,.0f} ms of prefill and decode steps of "
        f"{bound['step_ms']:,.1f} ms for {bound['clients']} allow {bound['requests_per_s']:.3g} "
        f"requests/s; {bound['reached']:.0%} of that was reached."
        for bound in result["bounds"]
    ]
    if (short := result["short_behind_long"]) is not None:
        lines.append(_overtaking_line(short))
    return lines


def _overtaking_line(short: Mapping[str, Any]) -> str:
    if not short["behind_ms"]:
        return "The long prompt was computed before a short one could arrive."
    low, high = min(short["behind_ms"]), max(short["behind_ms"])
    return (
        f"A prompt of {short['short_tokens']:,} tokens has its first token after "
        f"{short['alone_ms']:,.0f} ms alone, and {low:,.0f} to {high:,.0f} ms behind one of "
        f"{short['long_tokens']:,} at {short['ratio']:.0%}, whose longest pass takes "
        f"{short['pass_ms']:,.0f} ms: at most {short['of_limit']:.0%} of a pass and two times the "
        "time alone."
    )


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
