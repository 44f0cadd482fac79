"""Comparisons as tables, for a terminal or in Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from fusionrag_integrations.bench.comparison import Outcome, Row
from fusionrag_integrations.bench.summary import QualityRow

_TEXT = ("questions", "strategy")
_NUMBERS = ("right", "kept", "redone", "TTFT", "speed-up")


def rows_table(rows: Sequence[Row]) -> Table:
    """One line a strategy, the kinds of question apart. `rows` come kind by kind."""
    # Narrow enough for a terminal of 80 columns.
    table = Table(
        title="Strategies side by side", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    for heading in _TEXT:
        table.add_column(heading, no_wrap=True)
    for heading in _NUMBERS:
        table.add_column(heading, justify="right")
    for kind, group in groupby(rows, key=attrgetter("kind")):
        for row in group:
            table.add_row(kind, *row_cells(row))
        table.add_section()
    return table


def row_cells(row: Row) -> tuple[str, ...]:
    """A row's strategy and figures as text."""
    return (
        row.strategy,
        f"{row.right} of {row.n}",
        f"{row.kept} of {row.answerable}",
        f"{row.recompute_ratio:.0%}",
        f"{row.ttft_ms:.0f} ms",
        f"{row.speedup:.1f}x",
    )


def answers_table(outcomes: Sequence[Outcome], a_kind: int) -> Table:
    """The first questions of each kind, with each strategy's answer: green where it is right."""
    table = Table(title="Some of the questions", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("question", "expected", "strategy", "answer"):
        table.add_column(heading)
    shown: Counter[str] = Counter()
    for question, group in groupby(outcomes, key=attrgetter("question")):
        shown[question.kind] += 1
        if shown[question.kind] > a_kind:
            continue
        asked = (escape(question.question), escape(" / ".join(question.answers)))
        for outcome in group:
            colour = "green" if outcome.right else "red"
            answer = escape(" ".join(outcome.answer.text.split()))
            table.add_row(*asked, outcome.strategy, f"[{colour}]{answer}[/{colour}]")
            asked = ("", "")
        table.add_section()
    return table


_STRATEGY = ("questions", "strategy", "kv", "ratio", "n")
CLOSENESS_HEADINGS = (
    *(*_STRATEGY, "kept", "of", "equal", "recovered", "agreement", "KL"),
    *("KL, median", "KL, worst tenth", "KL, answer"),
)
SCORES_HEADINGS = (
    *(*_STRATEGY, "EM", "F1", "95%", "normalised", "ROUGE-1"),
    *("work", "TTFT", "speed-up"),
)


def quality_markdown(rows: Sequence[QualityRow]) -> str:
    """How close each strategy comes to full attention, and how right its answers are: two tables
    of a line a strategy, KV, ratio and kind of question.
    """
    close = markdown(CLOSENESS_HEADINGS, [closeness_cells(row) for row in rows])
    return f"{close}\n\n{markdown(SCORES_HEADINGS, [score_cells(row) for row in rows])}"


def markdown(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    rows = [headings, ["---"] * len(headings), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def closeness_cells(row: QualityRow) -> tuple[str, ...]:
    """A row's figures as text, in the order of `CLOSENESS_HEADINGS`."""
    return (
        *_strategy_cells(row),
        *(with_interval(row.kept, row.kept_ci), str(row.kept_of)),
        with_interval(row.equal, row.equal_ci),
        with_interval(row.recovered, row.recovered_ci),
        with_interval(row.agreement, row.agreement_ci),
        with_interval(row.kl, row.kl_ci, ".4f"),
        *(f"{row.kl_median:.4f}", f"{row.kl_worst_tenth:.4f}"),
        "" if row.kl_answer is None else f"{row.kl_answer:.4f}",
    )


def score_cells(row: QualityRow) -> tuple[str, ...]:
    """A row's figures as text, in the order of `SCORES_HEADINGS`."""
    return (
        *_strategy_cells(row),
        *(f"{row.em:.2f}", f"{row.f1:.2f}", f"{row.ci[0]:.2f}-{row.ci[1]:.2f}"),
        "" if row.normalized_f1 is None else f"{row.normalized_f1:.2f}",
        *(f"{row.rouge1:.2f}", f"{row.work:.0%}"),
        "" if row.ttft_ms is None else f"{row.ttft_ms:.0f} ms",
        "" if row.speedup is None else f"{row.speedup:.1f}x",
    )


def _strategy_cells(row: QualityRow) -> tuple[str, ...]:
    return (row.kind, row.strategy, row.kv, f"{row.ratio:.0%}", str(row.n))


def with_interval(value: float | None, bounds: Sequence[float] | None, form: str = ".2f") -> str:
    """A figure with its interval in brackets, where it has one; nothing where there is none."""
    if value is None or bounds is None:
        return "" if value is None else f"{value:{form}}"
    return f"{value:{form}} ({bounds[0]:{form}} to {bounds[1]:{form}})"


TTFT_PARTS = ("load", "place", "probe", "select", "prefill", "first_token")


def ttft_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line a strategy, ratio and context: TTFT from token ids, its parts, and the limit."""
    headings = ("context", "strategy", "ratio", "kv", "TTFT (ms)", "quartiles", "speed-up")
    lines = [
        (
            *(f"{row['context']:,}", row["strategy"], f"{row['ratio']:.0%}", row["kv"]),
            f"{row['ttft_ms']:.1f}",
            f"{row['spread_ms'][0]:.1f}-{row['spread_ms'][1]:.1f}",
            f"{row['speedup']:.2f}x",
            f"{row['limit_ms']:.1f}",
            *(f"{row['breakdown'][part]:.1f}" for part in TTFT_PARTS),
            f"{row['from_text_ms']:.1f}",
        )
        for row in rows
    ]
    return markdown((*headings, "limit", *TTFT_PARTS, "from text"), lines)


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
