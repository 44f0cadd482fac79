"""Results -> the tables of a Markdown document, between marks that say what belongs there.

    <!-- result: f1 NAME kind=back_reference -->
    (this is replaced)
    <!-- /result -->

NAME is that of a result file. What there is:

f1 NAME kind=K                F1 of each strategy by ratio, with 95% intervals
normalised NAME kind=K        normalised F1 by ratio
leads NAME ratio=R            how far our selector is ahead of each other, by kind of question
deviation NAME kind=K ratio=R how far KV is from full attention's after recomputation, by layer
overlap NAME kind=K ratio=R   how many selected tokens an oracle takes too
policies NAME NAME ... kind=K F1 on fused KV by what it was fused behind, one run a row
cost NAME                     work in a deeper shape
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fusionrag_integrations.bench.tables import markdown
from fusionrag_integrations.errors import InvalidInputError

_BLOCK = re.compile(r"(<!-- result: (.+?) -->\n)(.*?)(<!-- /result -->)", re.DOTALL)

Result = Mapping[str, Any]


def fill(document: str, results: Path) -> str:
    """The document with its tables made anew; raises `InvalidInputError` for a mark it can't."""

    def table(match: re.Match[str]) -> str:
        return f"{match[1]}\n{_table(match[2], results)}\n\n{match[4]}"

    return _BLOCK.sub(table, document)


def _table(mark: str, results: Path) -> str:
    view, *words = mark.split()
    if view not in _VIEWS:
        raise InvalidInputError(f"Unknown table {view!r}; known are {', '.join(_VIEWS)}.")
    names = [word for word in words if "=" not in word]
    options = dict(word.split("=", 1) for word in words if "=" in word)
    loaded = {name: _load(results / f"{name}.json") for name in names}
    try:
        return _VIEWS[view](loaded, options)
    except (KeyError, IndexError) as error:
        raise InvalidInputError(f"Table {mark!r} lacks {error}.") from error


def _load(path: Path) -> Result:
    if not path.exists():
        raise InvalidInputError(f"There is no result {path}.")
    result: Result = json.loads(path.read_text())
    return result


def _f1(loaded: Mapping[str, Result], options: Mapping[str, str]) -> str:
    return _by_ratio(loaded, options, _f1_cell)


def _f1_cell(row: Mapping[str, Any]) -> str:
    return _with_interval(row["f1"], row["ci"])


def _with_interval(value: float, bounds: Sequence[float]) -> str:
    return f"{value:.2f} ({bounds[0]:.2f}-{bounds[1]:.2f})"


def _normalised(loaded: Mapping[str, Result], options: Mapping[str, str]) -> str:
    def cell(row: Mapping[str, Any]) -> str:
        if row["normalized_f1"] is None:
            return ""
        if row["normalized_ci"] is None:
            return f"{row['normalized_f1']:.2f}"
        return _with_interval(row["normalized_f1"], row["normalized_ci"])

    return _by_ratio(loaded, options, cell)


def _by_ratio(
    loaded: Mapping[str, Result],
    options: Mapping[str, str],
    cell: Callable[[Mapping[str, Any]], str],
) -> str:
    (result,) = loaded.values()
    rows = [r for r in result["rows"] if r["kind"] == options["kind"]]
    ratios = sorted({r["ratio"] for r in rows})
    strategies = dict.fromkeys((r["strategy"], r["kv"]) for r in rows)
    found = {(r["strategy"], r["kv"], r["ratio"]): cell(r) for r in rows}
    lines = [
        [name, kv, *(found.get((name, kv, ratio), "") for ratio in ratios)]
        for name, kv in strategies
    ]
    return markdown(["strategy", "KV", *(f"{ratio:.0%}" for ratio in ratios)], lines)


def _leads(loaded: Mapping[str, Result], options: Mapping[str, str]) -> str:
    (result,) = loaded.values()
    gaps = [gap for gap in result["leads"] if gap["ratio"] == float(options["ratio"])]
    others = list(dict.fromkeys(gap["other"] for gap in gaps))
    found = {(gap["kind"], gap["kv"], gap["other"]): _gap(gap) for gap in gaps}
    lines = [
        [kind, kv, *(found[kind, kv, other] for other in others)]
        for kind, kv in dict.fromkeys((gap["kind"], gap["kv"]) for gap in gaps)
    ]
    return markdown(["questions", "KV", *others], lines)


def _gap(gap: Mapping[str, Any]) -> str:
    """Bold where the interval leaves no doubt about who is ahead."""
    text = f"{gap['mean']:+.2f} ({gap['low']:+.2f} to {gap['high']:+.2f})"
    return f"**{text}**" if gap["low"] > 0 or gap["high"] < 0 else text


def _deviation(loaded: Mapping[str, Result], options: Mapping[str, str]) -> str:
    rows = [row for row in _at(loaded, options) if row["deviation"]]
    layers = range(len(rows[0]["deviation"]))
    lines = [
        [row["strategy"], row["kv"], *(f"{value:.3f}" for value in row["deviation"])]
        for row in rows
    ]
    return markdown(["strategy", "KV", *(f"layer {layer}" for layer in layers)], lines)


def _overlap(loaded: Mapping[str, Result], options: Mapping[str, str]) -> str:
    lines = [
        [row["strategy"], row["kv"]]
        + [f"{row[name]:.2f}" for name in ("overlap_deviation", "overlap_attention")]
        for row in _at(loaded, options)
        if row["overlap_deviation"] is not None
    ]
    headings = ["strategy", "KV", "with the largest KV deviation", "with full attention's"]
    return markdown(headings, lines)


def _policies(loaded: Mapping[str, Result], options: Mapping[str, str]) -> str:
    lines = []
    ratios: list[float] = []
    for result in loaded.values():
        rows = [
            row
            for row in result["rows"]
            if (row["kind"], row["strategy"], row["kv"]) == (options["kind"], "fusionrag", "fused")
        ]
        ratios = [row["ratio"] for row in rows]
        lines.append([result["neighbours"], *map(_f1_cell, rows)])
    return markdown(["fused behind", *(f"{ratio:.0%}" for ratio in ratios)], lines)


def _cost(loaded: Mapping[str, Result], options: Mapping[str, str]) -> str:
    (result,) = loaded.values()
    rows = result["rows"]
    ratios = sorted({row["ratio"] for row in rows})
    found = {(row["strategy"], row["ratio"]): f"{row['work']:.1%}" for row in rows}
    lines = [
        [name, *(found.get((name, ratio), "") for ratio in ratios)]
        for name in dict.fromkeys(row["strategy"] for row in rows)
    ]
    return markdown(["strategy", *(f"{ratio:.0%}" for ratio in ratios)], lines)


def _at(loaded: Mapping[str, Result], options: Mapping[str, str]) -> list[Mapping[str, Any]]:
    """The rows of one kind of question that recompute a given share, or nothing."""
    (result,) = loaded.values()
    ratio = float(options["ratio"])
    return [
        row
        for row in result["rows"]
        if row["kind"] == options["kind"]
        and (row["ratio"] == ratio or row["strategy"] == "full_reuse")
    ]


_VIEWS: dict[str, Callable[[Mapping[str, Result], Mapping[str, str]], str]] = {
    "f1": _f1,
    "normalised": _normalised,
    "leads": _leads,
    "deviation": _deviation,
    "overlap": _overlap,
    "policies": _policies,
    "cost": _cost,
}
