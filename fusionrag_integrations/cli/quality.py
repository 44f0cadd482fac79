"""The command that compares strategies on questions with known answers: bench quality."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from fusionrag_integrations.cli.console import FilePath, err, json_option, out, print_json
from fusionrag_integrations.cli.numbers import count, ratios_option
from fusionrag_integrations.cli.suites import asks, directory, opened
from fusionrag_integrations.documents.named import find
from fusionrag_integrations.errors import InvalidInputError

if TYPE_CHECKING:
    from fusionrag_integrations.bench.strategies import Strategy
    from fusionrag_integrations.bench.suites import Suite
    from fusionrag_integrations.bench.summary import QualityRow
    from fusionrag_integrations.engine import FusionEngine


@click.command()
@asks(seed=0)
@click.option(
    "--strategies",
    help="Comma-separated; with :published behind a name, over the KV that its authors place.  "
    "[default: the paper's baselines and ours]",
)
@ratios_option("0,0.05,0.15")
@click.option(
    "--kv",
    default="isolated,fused",
    show_default=True,
    help="What is placed: isolated, fused (as by default); isolated_as_stored, fused_as_stored.",
)
@click.option(
    "--neighbours",
    default="default",
    show_default=True,
    help="What KV is fused behind: default, reversed, similar, predecessors, missing, wrong; with "
    "a number of them behind a colon, as in similar:5.",
)
@click.option(
    "--inspect",
    type=count(0),
    default=1,
    show_default=True,
    help="Questions a kind that are timed, and whose KV is compared with full attention's.",
)
@click.option(
    "--judge",
    metavar="MODULE:NAME",
    help="A function of a bench Question and an answer's text that gives a score in [0, 1].",
)
@click.option(
    "--out",
    "kept",
    type=FilePath(file_okay=False),
    help="Keep the store, the log and the tables here; what is there already isn't asked again.",
)
@json_option
def quality(
    make_suite: Callable[[], Suite],
    model: str | None,
    seed: int,
    embedding: str | None,
    strategies: str | None,
    ratios: list[float],
    kv: str,
    neighbours: str,
    inspect: int,
    judge: str | None,
    kept: Path | None,
    as_json: bool,
) -> None:
    """Ask the same questions under every strategy: how close it comes to full attention's answers.

    Also EM, F1, ROUGE-1, work and TTFT, with intervals.

    \b
    fusionrag bench quality --limit 20                             a first look, in minutes
    fusionrag bench quality --model Qwen/Qwen2.5-7B-Instruct \\
        --dataset hotpotqa --data hotpot_dev_distractor_v1.json --limit 200 --out runs/hotpot
    """
    from fusionrag_integrations.bench.extra import require_bench_extra
    from fusionrag_integrations.bench.files import run_result, write_run
    from fusionrag_integrations.bench.log import open_log
    from fusionrag_integrations.bench.neighbours import make_policy
    from fusionrag_integrations.bench.quality import run_quality
    from fusionrag_integrations.bench.summary import summarise
    from fusionrag_integrations.bench.tables import quality_markdown

    require_bench_extra()
    chosen = _strategies(strategies, ratios, kv)
    suite = make_suite()
    policy = make_policy(neighbours)
    asked = _judge(judge)
    choices = {"seed": seed, "neighbours": neighbours, "inspected": inspect, "judge": judge or ""}
    with directory(kept) as path, opened(model, suite, embedding, path) as (engine, progress):
        identity = _identity(engine, suite) | choices
        log = path / "log.jsonl"
        open_log(log, identity)  # another run's is refused before its store is changed
        engine.ingest(suite.documents, neighbours=policy(engine), progress=progress)
        measured = run_quality(
            engine,
            suite.questions(engine),
            chosen,
            log,
            identity=identity,
            max_tokens=suite.max_tokens,
            inspected=inspect,
            judge=asked,
            progress=lambda done, total: progress("ask", done, total),
        )
        rows = summarise(measured)
        result = run_result(identity, rows)
        if kept is not None:
            write_run(path, result, quality_markdown(rows))
    if as_json:
        print_json(result)
    else:
        _show(rows, kept)


def _strategies(names: str | None, ratios: list[float], kv: str) -> list[Strategy]:
    from fusionrag_integrations.bench.strategies import DEFAULT_STRATEGIES, make_strategies

    listed = DEFAULT_STRATEGIES if names is None else tuple(names.split(","))
    if "prefix_cache" in listed:
        raise InvalidInputError(
            "A prefix cache computes every chunk and answers as full attention does; time it by "
            "`fusionrag bench ttft --strategies prefix_cache`."
        )
    return make_strategies(listed, ratios, _kinds(kv))


def _judge(name: str | None) -> Any:
    found = None if name is None else find("--judge", name)
    if found is not None and not callable(found):
        raise InvalidInputError(f"--judge {name!r} names {found!r}; name a function.")
    return found


def _identity(engine: FusionEngine, suite: Suite) -> dict[str, Any]:
    """What is asked, and of what; a log of something else is another run's."""
    info = engine.store.catalog.info
    return {
        "model": engine.model_name,
        "signature": info.signature,
        "calibration": engine.calibration and asdict(engine.calibration),
        "embedding": info.embedding,
        "dataset": suite.name,
        "content": suite.content,
    }


def _show(rows: Sequence[QualityRow], kept: Path | None) -> None:
    from fusionrag_integrations.bench.tables import quality_markdown

    out.print(quality_markdown(rows), markup=False)
    if kept is not None:
        err.print(f"Log and table are in {kept}.", markup=False)


def _kinds(listed: str) -> list[Any]:
    from fusionrag_integrations.bench.strategies import PlacedKV

    kinds, known = listed.split(","), get_args(PlacedKV)
    if unknown := set(kinds) - set(known):
        raise InvalidInputError(f"--kv {', '.join(sorted(unknown))}: choose {', '.join(known)}.")
    return kinds
