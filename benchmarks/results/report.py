"""Results -> the tables and figures of a Markdown document, between marks that say what belongs
there.

    <!-- result: f1 NAME kind=back_reference -->
    (this is replaced)
    <!-- /result -->

NAME is that of a result file without its ending; a * in it stands for several. Where several are
put side by side, the questions of a file of JSON lines go by it. What there is:

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
throughput NAME                   requests a second under each load, and how long they wait
kernel NAME                       the attention kernel beside others
store NAME                        reads of KV files, lookups, and what a prefetch hides
routers NAME                      KV found in memory behind each router of replicas
formats NAME                      bytes, times and errors of the formats that stores may have
format-scores NAME                F1 and EM in each of these formats
overlap-of-prompts NAME           how much the chunks of real questions have in common
routing-hits NAME, routing-times NAME   hit rates and TTFT of each way to choose a replica
routing-hindsight NAME            hit rates of placements that know the prompts
serving NAME                      1 to 256 replicas, simulated
workers NAME                      an ingest by 1 to 16 workers, simulated
kv-bytes NAME, corpora NAME, break-even NAME, serving-cost NAME   the parts of the cost model
figure F NAME kind=K kv=V         a figure of `figures.py` by its name
figure f1-by-neighbours NAME* kind=K ratio=R
figure F NAME                     a figure of `speed_figures.py` by its name

Figures are drawn in `figures/` beside the document.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import TypeVar

from benchmarks.results import quality_views, scale_views, speed_views
from benchmarks.results.figures import draw_figure, f1_by_neighbours
from benchmarks.results.marks import Mark, Result
from benchmarks.results.speed_figures import SPEED_FIGURES
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.support.inputs import parse_json

T = TypeVar("T")

_BLOCK = re.compile(r"(<!-- result: (.+?) -->\n)(.*?)(<!-- /result -->)", re.DOTALL)


def fill(document: str, results: Path) -> str:
    """The document with its tables made anew; raises `InvalidInputError` for a mark it can't."""

    def shown(match: re.Match[str]) -> str:
        text = _made(match[2], results, lambda mark: _VIEWS[mark.words[0]](mark))
        return f"{match[1]}\n{text}\n\n{match[4]}"

    return _BLOCK.sub(shown, document)


def draw_figures(document: str, results: Path, directory: Path) -> None:
    """Draw what the document's `figure` marks name, below the document's directory."""
    for match in _BLOCK.finditer(document):
        if match[2].startswith("figure "):
            _made(match[2], results, lambda mark: _draw(mark, directory))


def _made(written: str, results: Path, make: Callable[[Mark], T]) -> T:
    words = tuple(written.split())
    if words[0] not in _VIEWS:
        raise InvalidInputError(f"Unknown view {words[0]!r}; known are {', '.join(_VIEWS)}.")
    names = [word for word in words[2 if words[0] == "figure" else 1 :] if "=" not in word]
    loaded = {path.stem: _load(path) for name in names for path in _paths(results, name)}
    options = dict(word.split("=", 1) for word in words if "=" in word)
    try:
        return make(Mark(words, loaded, options))
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


def _figure(mark: Mark) -> str:
    path = _figure_path(mark)
    return f"![{path.name.replace('-', ' ').replace('_', ' ')}]({path}.svg)"


def _figure_path(mark: Mark) -> PurePosixPath:
    """A figure's path from the document's directory and without its ending."""
    words = [word.split("=")[-1].removesuffix("/*") for word in mark.words[1:]]
    return PurePosixPath("figures", "-".join(words).replace("/", "-"))


def _draw(mark: Mark, directory: Path) -> None:
    stem, options, name = directory / _figure_path(mark), mark.options, mark.words[1]
    if name in SPEED_FIGURES:
        SPEED_FIGURES[name](stem, mark.only)
    elif name == "f1-by-neighbours":
        subject = f"{options['kind']}, {float(options['ratio']):.0%} recomputed"
        f1_by_neighbours(stem, quality_views.by_count(mark), subject)
    else:
        draw_figure(stem, name, mark.only["rows"], options["kind"], options["kv"])


_VIEWS: Mapping[str, Callable[[Mark], str]] = {
    "closeness": quality_views.closeness,
    "recovered": quality_views.recovered,
    "f1": quality_views.f1,
    "normalised": quality_views.normalised,
    "kinds": quality_views.kinds,
    "leads": quality_views.leads,
    "published": quality_views.published,
    "overlap": quality_views.overlap,
    "neighbours": quality_views.neighbours,
    "cost": quality_views.cost,
    "ttft": speed_views.ttft,
    "throughput": speed_views.throughput,
    "kernel": speed_views.kernel,
    "store": speed_views.store,
    "routers": speed_views.routers,
    "ray-ingest": speed_views.ray_ingest,
    "shared": speed_views.shared,
    "formats": speed_views.formats,
    "format-scores": speed_views.format_scores,
    "overlap-of-prompts": scale_views.overlap,
    "routing-hits": scale_views.hits,
    "routing-times": scale_views.times,
    "routing-hindsight": scale_views.hindsight,
    "serving": scale_views.serving,
    "workers": scale_views.ingest,
    "kv-bytes": scale_views.kv_bytes,
    "corpora": scale_views.corpora,
    "break-even": scale_views.break_even,
    "serving-cost": scale_views.serving_cost,
    "figure": _figure,
}
