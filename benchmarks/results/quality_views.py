"""What a document shows of `fusionrag bench quality`, as Markdown; see `report.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks.results.figures import LEVELS
from benchmarks.results.marks import Mark, Result
from fusionrag_integrations.bench.strategies import REUSE
from fusionrag_integrations.bench.tables import markdown, with_interval


def closeness(mark: Mark) -> str:
    ratio, kv = (mark.options.get(name) for name in ("ratio", "kv"))
    lines = [
        [row["strategy"], row["kv"], f"{row['ratio']:.0%}"]
        + [with_interval(row["kept"], row["kept_ci"]), str(row["kept_of"])]
        + [with_interval(row[n], row[f"{n}_ci"]) for n in ("equal", "recovered")]
        + [with_interval(row[n], row[f"{n}_ci"], ".3f") for n in ("agreement", "kl")]
        for row in mark.rows
        if row["strategy"] in LEVELS
        or (kv in (None, row["kv"]) and (ratio is None or row["ratio"] == float(ratio)))
    ]
    figures = ("kept", "of", "equal", "recovered", "agreement", "KL")
    return markdown(["strategy", "KV", "ratio", *figures], lines)


def recovered(mark: Mark) -> str:
    ratio = float(mark.options["ratio"])
    cells = {
        (row["strategy"], row["kv"], _asked(name, row["kind"])): with_interval(
            row["recovered"], row["recovered_ci"]
        )
        for name, result in mark.loaded.items()
        for row in result["rows"]
        if row["ratio"] == ratio or row["strategy"] == REUSE.name
    }
    return _pivot(["strategy", "KV"], cells, {key[-1]: key[-1] for key in cells})


def _asked(name: str, kind: str) -> str:
    """What tells a result's questions from those of others; name: of the result."""
    return name if kind == "jsonl" else kind


def f1(mark: Mark) -> str:
    return _by_ratio(mark, _f1_cell)


def _f1_cell(row: Mapping[str, Any]) -> str:
    return with_interval(row["f1"], row["ci"])


def normalised(mark: Mark) -> str:
    return _by_ratio(mark, lambda row: with_interval(row["normalized_f1"], row["normalized_ci"]))


def _by_ratio(mark: Mark, cell: Callable[[Mapping[str, Any]], str]) -> str:
    cells = {(row["strategy"], row["kv"], row["ratio"]): cell(row) for row in mark.rows}
    return _pivot(["strategy", "KV"], cells, _shares(row["ratio"] for row in mark.rows))


def _shares(ratios: Iterable[float]) -> dict[float, str]:
    return {ratio: f"{ratio:.0%}" for ratio in sorted(set(ratios))}


def _pivot(
    headings: Sequence[str], cells: Mapping[tuple[Any, ...], str], columns: Mapping[Any, str]
) -> str:
    """A line for what all but the last part of keys names, in order; a column for each last part.

    columns: the last parts with their headings. What has no cell stays empty.
    """
    lines = [
        [*name, *(cells.get((*name, column), "") for column in columns)]
        for name in dict.fromkeys(key[:-1] for key in cells)
    ]
    return markdown([*headings, *columns.values()], lines)


def kinds(mark: Mark) -> str:
    ratio, kv = float(mark.options["ratio"]), mark.options["kv"]
    cells = {
        (row["strategy"], row["kv"], _asked(name, row["kind"])): _f1_cell(row)
        for name, result in mark.loaded.items()
        for row in result["rows"]
        if (row["kv"] == kv and row["ratio"] == ratio) or row["strategy"] in LEVELS
    }
    return _pivot(["strategy", "KV"], cells, {key[-1]: key[-1] for key in cells})


def leads(mark: Mark) -> str:
    measure = mark.options.get("of", "f1")
    gaps = [
        gap | {"kv": _fused_behind(gap["kv"], result), "kind": _asked(name, gap["kind"])}
        for name, result in mark.loaded.items()
        for gap in result["leads"]
        if gap["ratio"] == float(mark.options["ratio"])
    ]
    cells = {
        (gap["kind"], gap["kv"], gap["other"]): _gap(gap if measure == "f1" else gap[measure])
        for gap in gaps
    }
    return _pivot(["questions", "KV"], cells, {gap["other"]: gap["other"] for gap in gaps})


def published(mark: Mark) -> str:
    lines = [
        [_asked(name, gap["kind"]), gap["other"], _fused_behind(gap["kv"], result)]
        + [_gap(gap[measure]) for measure in ("recovered", "kept")]
        for name, result in mark.loaded.items()
        for gap in result["leads_published"]
        if gap["ratio"] == float(mark.options["ratio"])
    ]
    return markdown(["questions", "over", "on KV", "recovered", "kept"], lines)


def _fused_behind(kv: str, result: Result) -> str:
    usual = not kv.startswith("fused") or result["neighbours"] == "default"
    return kv if usual else f"{kv} ({result['neighbours']})"


def _gap(gap: Mapping[str, Any] | None) -> str:
    """Bold where the interval leaves no doubt about who is ahead; nothing where there is none."""
    if gap is None:
        return ""
    text = f"{gap['mean']:+.2f} ({gap['low']:+.2f} to {gap['high']:+.2f})"
    return f"**{text}**" if gap["low"] > 0 or gap["high"] < 0 else text


def overlap(mark: Mark) -> str:
    ratio = float(mark.options["ratio"])
    lines = [
        [row["strategy"], row["kv"]]
        + [f"{row[name]:.2f}" for name in ("overlap_deviation", "overlap_attention")]
        for row in mark.rows
        if row["ratio"] == ratio and row["overlap_deviation"] is not None
    ]
    headings = ["strategy", "KV", "with the largest KV deviation", "with full attention's"]
    return markdown(headings, lines)


def _on_fused_kv(result: Result, kind: str) -> dict[float, Mapping[str, Any]]:
    """Our selector's rows by ratio."""
    return {
        row["ratio"]: row
        for row in result["rows"]
        if (row["kind"], row["strategy"], row["kv"]) == (kind, "fusionrag", "fused")
    }


def neighbours(mark: Mark) -> str:
    cells = {
        (policy, count): _f1_cell(row)
        for policy, by_count in by_count(mark).items()
        for count, row in by_count.items()
    }
    counts = sorted({count for _, count in cells})
    return _pivot(["neighbours at most"], cells, {count: str(count) for count in counts})


def by_count(mark: Mark) -> dict[str, dict[int, Mapping[str, Any]]]:
    """Rows by policy and number of neighbours; with none, all policies are the same."""
    policies: dict[str, dict[int, Mapping[str, Any]]] = {}
    for result in mark.loaded.values():
        policy, number = result["neighbours"].split(":")
        rows = _on_fused_kv(result, mark.options["kind"])
        policies.setdefault(policy, {})[int(number)] = rows[float(mark.options["ratio"])]
    none = {n: row for found in policies.values() for n, row in found.items() if n == 0}
    return {policy: dict(sorted((none | found).items())) for policy, found in policies.items()}


def cost(mark: Mark) -> str:
    rows = mark.only["rows"]
    cells = {(row["strategy"], row["ratio"]): f"{row['work']:.1%}" for row in rows}
    return _pivot(["strategy"], cells, _shares(row["ratio"] for row in rows))
