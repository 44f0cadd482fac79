"""Results -> the tables and figures of a Markdown document, between marks that say what belongs
there.

    <!-- result: f1 NAME kind=back_reference -->
    (this is replaced)
    <!-- /result -->

NAME is that of a result file without its ending; a * in it stands for several. Where several are
laid side by side, the questions of a file of JSON lines go by it. What there is:

closeness NAME kind=K             how close each strategy and ratio comes to full attention;
                                  ratio=R, kv=V: at that ratio, over that KV only
recovered NAME ... ratio=R        how much each strategy recovers, by kind of question
f1 NAME kind=K                    F1 of each strategy by ratio, with 95% intervals
normalised NAME kind=K            normalised F1 by ratio
kinds NAME ... ratio=R kv=V       F1 by kind of question at one ratio
leads NAME ... ratio=R            how far our selector is ahead of each other, by kind of question;
                                  of=recovered: in what is recovered, not in F1
published NAME ... ratio=R        how far ours over fused KV is ahead of others as published
overlap NAME kind=K ratio=R       how many selected tokens an oracle takes too
neighbours NAME* kind=K ratio=R   F1 on fused KV by how many neighbours of which policy
cost NAME                         work in a deeper shape
ttft NAME                         times to first token, their parts and limits, and a fit of them
kernel NAME                       the attention kernel beside others
store NAME                        reads of KV files, lookups, and what a prefetch hides
formats NAME                      bytes, times and errors of the formats that stores may have
format-scores NAME                F1 and EM in each of these formats
figure F NAME kind=K kv=V         a figure of `figures.py` by its name
figure f1-by-neighbours NAME* kind=K ratio=R
figure F NAME                     a figure of `speed_figures.py` by its name

Figures are drawn in `figures/` beside the document.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from fusionrag_integrations.bench.figures import LEVELS, draw_figure, f1_by_neighbours
from fusionrag_integrations.bench.speed_figures import SPEED_FIGURES
from fusionrag_integrations.bench.strategies import REUSE
from fusionrag_integrations.bench.tables import (
    format_scores_markdown,
    formats_markdown,
    kernel_markdown,
    markdown,
    store_markdown,
    ttft_markdown,
    with_interval,
)
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.inputs import parse_json

T = TypeVar("T")

_BLOCK = re.compile(r"(<!-- result: (.+?) -->\n)(.*?)(<!-- /result -->)", re.DOTALL)

Result = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Mark:
    """What belongs in one place: a view of results, and its options. words: as they are written."""

    words: tuple[str, ...]
    loaded: Mapping[str, Result]
    options: Mapping[str, str]

    @property
    def only(self) -> Result:
        """The one result that the view is of."""
        (result,) = self.loaded.values()
        return result

    @property
    def rows(self) -> list[Mapping[str, Any]]:
        """Those of the kind of question that is asked for."""
        return [row for row in self.only["rows"] if row["kind"] == self.options["kind"]]


def fill(document: str, results: Path) -> str:
    """The document with its tables made anew; raises `InvalidInputError` for a mark it can't."""

    def shown(match: re.Match[str]) -> str:
        text = _made(match[2], results, lambda mark: _VIEWS[mark.words[0]](mark))
        return f"{match[1]}\n{text}\n\n{match[4]}"

    return _BLOCK.sub(shown, document)


def draw_figures(document: str, results: Path, directory: Path) -> None:
    """Draw what the document's `figure` marks name, below the directory that it lies in."""
    for match in _BLOCK.finditer(document):
        if match[2].startswith("figure "):
            _made(match[2], results, lambda mark: _draw(mark, directory))


def _made(written: str, results: Path, make: Callable[[_Mark], T]) -> T:
    words = tuple(written.split())
    if words[0] not in _VIEWS:
        raise InvalidInputError(f"Unknown view {words[0]!r}; known are {', '.join(_VIEWS)}.")
    names = [word for word in words[2 if words[0] == "figure" else 1 :] if "=" not in word]
    loaded = {path.stem: _load(path) for name in names for path in _paths(results, name)}
    options = dict(word.split("=", 1) for word in words if "=" in word)
    try:
        return make(_Mark(words, loaded, options))
    except (KeyError, IndexError, ValueError) as error:
        raise InvalidInputError(f"{written!r} can't be made: it lacks {error}.") from error


def _paths(results: Path, name: str) -> list[Path]:
    found = sorted(results.glob(f"{name}.json"))
    if not found:
        raise InvalidInputError(f"There is no result {results / name}.json.")
    return found


def _load(path: Path) -> Result:
    result: Result = parse_json(path.read_text())
    return result


def _closeness(mark: _Mark) -> str:
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


def _recovered(mark: _Mark) -> str:
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


def _f1(mark: _Mark) -> str:
    return _by_ratio(mark, _f1_cell)


def _f1_cell(row: Mapping[str, Any]) -> str:
    return with_interval(row["f1"], row["ci"])


def _normalised(mark: _Mark) -> str:
    return _by_ratio(mark, lambda row: with_interval(row["normalized_f1"], row["normalized_ci"]))


def _by_ratio(mark: _Mark, cell: Callable[[Mapping[str, Any]], str]) -> str:
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


def _kinds(mark: _Mark) -> str:
    ratio, kv = float(mark.options["ratio"]), mark.options["kv"]
    cells = {
        (row["strategy"], row["kv"], _asked(name, row["kind"])): _f1_cell(row)
        for name, result in mark.loaded.items()
        for row in result["rows"]
        if (row["kv"] == kv and row["ratio"] == ratio) or row["strategy"] in LEVELS
    }
    return _pivot(["strategy", "KV"], cells, {key[-1]: key[-1] for key in cells})


def _leads(mark: _Mark) -> str:
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


def _published(mark: _Mark) -> str:
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


def _overlap(mark: _Mark) -> str:
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


def _neighbours(mark: _Mark) -> str:
    cells = {
        (policy, count): _f1_cell(row)
        for policy, by_count in _by_count(mark).items()
        for count, row in by_count.items()
    }
    counts = sorted({count for _, count in cells})
    return _pivot(["neighbours at most"], cells, {count: str(count) for count in counts})


def _by_count(mark: _Mark) -> dict[str, dict[int, Mapping[str, Any]]]:
    """Rows by policy and number of neighbours; with none, all policies are the same."""
    policies: dict[str, dict[int, Mapping[str, Any]]] = {}
    for result in mark.loaded.values():
        policy, number = result["neighbours"].split(":")
        rows = _on_fused_kv(result, mark.options["kind"])
        policies.setdefault(policy, {})[int(number)] = rows[float(mark.options["ratio"])]
    none = {n: row for found in policies.values() for n, row in found.items() if n == 0}
    return {policy: dict(sorted((none | found).items())) for policy, found in policies.items()}


def _cost(mark: _Mark) -> str:
    rows = mark.only["rows"]
    cells = {(row["strategy"], row["ratio"]): f"{row['work']:.1%}" for row in rows}
    return _pivot(["strategy"], cells, _shares(row["ratio"] for row in rows))


def _ttft(mark: _Mark) -> str:
    fit, told = mark.only["fit"], ""
    if fit is not None:
        told = (
            f"; fit: {fit['fixed_ms']:.1f} ms, {fit['ms_a_row']:.3f} ms a computed row and "
            f"{fit['ms_a_million_keys']:.3f} ms a million attended keys, R² {fit['r_squared']:.3f}"
        )
    return f"{ttft_markdown(mark.only['rows'])}\n\n({_measured(mark.only)}{told}.)"


def _kernel(mark: _Mark) -> str:
    return f"{kernel_markdown(mark.only['rows'])}\n\n({_measured(mark.only)}.)"


def _store(mark: _Mark) -> str:
    result = mark.only
    told = f"{result['model']}, {result['context']:,} tokens, KV in {result['format']}"
    if "rows" in result:
        told += f"; {result['ratio']:.0%} recomputed, a gap of {result['gap_ms']:.0f} ms"
    return f"{store_markdown(result)}\n\n({told}; on {result['device']}; {_measured(result)}.)"


def _formats(mark: _Mark) -> str:
    return f"{formats_markdown(mark.only['formats'])}\n\n({_measured(mark.only)}.)"


def _format_scores(mark: _Mark) -> str:
    return format_scores_markdown(mark.only["rows"])


def _measured(result: Result) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    return f"{result['date']}; {result['hardware']}; {result['dtype']}; {versions}"


def _figure(mark: _Mark) -> str:
    path = _figure_path(mark)
    return f"![{path.name.replace('-', ' ').replace('_', ' ')}]({path}.svg)"


def _figure_path(mark: _Mark) -> PurePosixPath:
    """Where a figure lies, from the document's directory and without its ending."""
    words = [word.split("=")[-1].removesuffix("/*") for word in mark.words[1:]]
    return PurePosixPath("figures", "-".join(words).replace("/", "-"))


def _draw(mark: _Mark, directory: Path) -> None:
    stem, options, name = directory / _figure_path(mark), mark.options, mark.words[1]
    if name in SPEED_FIGURES:
        SPEED_FIGURES[name](stem, mark.only)
    elif name == "f1-by-neighbours":
        ratio = float(options["ratio"])
        f1_by_neighbours(stem, _by_count(mark), f"{options['kind']}, {ratio:.0%} recomputed")
    else:
        draw_figure(stem, name, mark.only["rows"], options["kind"], options["kv"])


_VIEWS: Mapping[str, Callable[[_Mark], str]] = {
    "closeness": _closeness,
    "recovered": _recovered,
    "f1": _f1,
    "normalised": _normalised,
    "kinds": _kinds,
    "leads": _leads,
    "published": _published,
    "overlap": _overlap,
    "neighbours": _neighbours,
    "cost": _cost,
    "ttft": _ttft,
    "kernel": _kernel,
    "store": _store,
    "formats": _formats,
    "format-scores": _format_scores,
    "figure": _figure,
}
