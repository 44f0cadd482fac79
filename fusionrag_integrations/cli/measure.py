"""Commands that measure: calibrate, and bench."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, get_args

import click

from fusionrag_integrations.cli.console import (
    FilePath,
    bars,
    embedding_option,
    err,
    find,
    imported,
    json_option,
    out,
    print_json,
)
from fusionrag_integrations.cli.models import MODEL_HELP, find_model
from fusionrag_integrations.cli.numbers import SEED, count, ratios_option
from fusionrag_integrations.errors import InvalidInputError

if TYPE_CHECKING:
    from fusionrag_integrations.bench.suites import Suite
    from fusionrag_integrations.corpus import Progress
    from fusionrag_integrations.engine import FusionEngine

QUESTIONS_A_KIND = 100

model_option = click.option("--model", help=f"{MODEL_HELP}  [default: demo]")
dataset_option = click.option(
    "--dataset",
    default="demo",
    show_default=True,
    help="demo or hard (the demo's world), hotpotqa, 2wiki, musique, triviaqa, or jsonl.",
)
data_option = click.option(
    "--data",
    type=FilePath(exists=True, dir_okay=False),
    help="The data set's file in its published format; demo and hard need none.",
)
limit_option = click.option(
    "--limit",
    type=count(),
    help="Questions: of each kind for demo and hard, in all for others.  [default: 100; all]",
)
kinds_option = click.option(
    "--kinds", help="Comma-separated kinds of question, of demo and hard.  [default: all]"
)


def asks(seed: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The options of a command that asks a model questions; it is given what makes the suite.

    seed: the default one.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(
            dataset: str, data: Path | None, limit: int | None, kinds: str | None, **rest: Any
        ) -> None:
            command(lambda: _suite(dataset, data, limit, kinds, rest["seed"]), **rest)

        seed_option = click.option(
            "--seed", type=SEED, default=seed, show_default=True, help="Of the questions drawn."
        )
        own = (model_option, dataset_option, data_option, limit_option, kinds_option, seed_option)
        for option in reversed((*own, embedding_option)):
            run = option(run)
        return run

    return decorate


@click.command()
@asks(seed=1_000_000)
@click.option(
    "--out",
    "target",
    type=FilePath(),
    required=True,
    help="A store's directory or the model's own: calibration.json is written there.",
)
@json_option
def calibrate(
    make_suite: Callable[[], Suite],
    model: str | None,
    seed: int,
    embedding: str | None,
    target: Path,
    as_json: bool,
) -> None:
    """Measure which layers and signals tell this model best what to recompute.

    No accepted answers are needed. Don't calibrate on questions that you report on. Also measured:
    how long a prompt must be here for reuse to be quicker than a full prefill.
    """
    from fusionrag_integrations.bench.break_even import measure_break_even
    from fusionrag_integrations.bench.neighbours import make_policy
    from fusionrag_integrations.calibrate import calibrate as measure
    from fusionrag_integrations.calibration import (
        CALIBRATION_FILE,
        read_calibration,
        write_calibration,
    )
    from fusionrag_integrations.durable import check_output
    from fusionrag_integrations.model import device_name

    if not target.is_dir():
        raise InvalidInputError(
            f"There is no directory {target}; give --out a store's, or the model's own."
        )
    check_output(target / CALIBRATION_FILE)
    suite = make_suite()
    with (
        _directory(None) as path,
        _opened(model, suite, embedding, path) as (engine, progress),
    ):
        signature = engine.corpus.catalog.info.signature
        read_calibration(target / CALIBRATION_FILE, signature)  # a damaged file is refused first
        engine.ingest(suite.documents, neighbours=make_policy("wrong")(engine), progress=progress)
        prompts = [question.prompt for question in suite.questions(engine)]
        found, measured = measure(
            engine, prompts, lambda done, total: progress("calibrate", done, total)
        )
        tokens, speed = measure_break_even(
            engine.model, found, lambda done, total: progress("speed", done, total)
        )
        device = device_name(engine.model.device)
    measured |= {"dataset": suite.name, "seed": seed, "speed": {device: speed}}
    write_calibration(target / CALIBRATION_FILE, signature, found, measured, {device: tokens})
    if as_json:
        print_json(asdict(found) | {"break_even": {device: tokens}, "measured": measured})
        return
    out.print(f"Layers {', '.join(map(str, found.layers))}, ", end="")
    out.print("whole sentences, " if found.whole_sentences else "single tokens, ", end="")
    out.print(f"sensitivity to the power of {found.sensitivity:g}.")
    out.print(f"On {device} reuse pays from {tokens} tokens on.", markup=False)
    out.print(f"Written to {target / CALIBRATION_FILE}.", markup=False)


@click.group()
def bench() -> None:
    """Measure quality against every baseline, on questions with known answers."""


@bench.command()
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
    "directory",
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
    directory: Path | None,
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
    from fusionrag_integrations.bench.leads import leads, published_leads
    from fusionrag_integrations.bench.log import open_log
    from fusionrag_integrations.bench.neighbours import make_policy
    from fusionrag_integrations.bench.quality import run_quality
    from fusionrag_integrations.bench.strategies import DEFAULT_STRATEGIES, make_strategies
    from fusionrag_integrations.bench.summary import summarise

    require_bench_extra()
    names = DEFAULT_STRATEGIES if strategies is None else tuple(strategies.split(","))
    if "prefix_cache" in names:
        raise InvalidInputError(
            "A prefix cache computes every chunk and answers as full attention does; time it by "
            "`fusionrag bench ttft --strategies prefix_cache`."
        )
    chosen = make_strategies(names, ratios, _kinds(kv))
    suite = make_suite()
    policy = make_policy(neighbours)
    asked: Any = None if judge is None else find("--judge", judge)
    if asked is not None and not callable(asked):
        raise InvalidInputError(f"--judge {judge!r} names {asked!r}; name a function.")
    with (
        _directory(directory) as path,
        _opened(model, suite, embedding, path) as (engine, progress),
    ):
        info = engine.corpus.catalog.info
        identity = {
            "model": engine.model_name,
            "signature": info.signature,
            "calibration": engine.calibration and asdict(engine.calibration),
            "embedding": info.embedding,
            "dataset": suite.name,
            "content": suite.content,
            "seed": seed,
            "neighbours": neighbours,
            "inspected": inspect,
            "judge": judge or "",
        }
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
        result = run_result(identity, rows, leads(measured), published_leads(measured))
        if directory is not None:
            write_run(path, result, rows)
    if as_json:
        print_json(result)
    else:
        from fusionrag_integrations.bench.tables import quality_markdown

        out.print(quality_markdown(rows), markup=False)
        if directory is not None:
            err.print(f"Log, table and figures are in {directory}.", markup=False)


@bench.command()
@click.option("--layers", type=count(2), default=28, show_default=True)
@click.option("--strategies", help="Comma-separated.  [default: all]")
@ratios_option("0,0.05,0.1,0.15")
@json_option
def cost(layers: int, strategies: str | None, ratios: list[float], as_json: bool) -> None:
    """Count the layers that each strategy runs in a model of another depth, with random weights.

    The prompts are the demo's. Our own selector works as calibrated for the demo's model, at the
    same relative depth.
    """
    from fusionrag_integrations.bench.cost import count_work
    from fusionrag_integrations.bench.strategies import STRATEGY_NAMES, make_strategies
    from fusionrag_integrations.calibration import CALIBRATION_FILE, read_calibration
    from fusionrag_integrations.demo import MODEL_DIR
    from fusionrag_integrations.demo.suites import demo_suite
    from fusionrag_integrations.model import CausalModel
    from fusionrag_integrations.prompt import ingest_surroundings

    demo = CausalModel.load(MODEL_DIR)
    signature = demo.signature(ingest_surroundings(demo.tokenizer))
    names = STRATEGY_NAMES if strategies is None else tuple(strategies.split(","))
    with bars() as progress:
        rows = count_work(
            layers,
            demo_suite(seed=0, questions_a_kind=2),
            make_strategies(names, ratios, ["isolated"]),
            demo,
            read_calibration(MODEL_DIR / CALIBRATION_FILE, signature),
            progress,
        )
    if as_json:
        print_json({"rows": [asdict(row) for row in rows]})
        return
    for row in rows:
        out.print(f"{row.strategy:16} {row.ratio:5.0%} {row.work:7.1%}")


@bench.command()
@click.argument("document", type=FilePath(exists=True, dir_okay=False))
@click.option(
    "--results",
    type=FilePath(exists=True, file_okay=False),
    required=True,
    help="Where the runs' results lie, as NAME.json each.",
)
def report(document: Path, results: Path) -> None:
    """Fill a Markdown document's tables from results and draw its figures; see bench/report.py."""
    from fusionrag_integrations.bench.report import draw_figures, fill
    from fusionrag_integrations.durable import check_output, write_output

    check_output(document)

    filled = fill(_text(document), results)
    draw_figures(filled, results, document.parent)
    write_output(document, filled.encode())


def _text(document: Path) -> str:
    try:
        return document.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{document} can't be read: {error}.") from error


@contextmanager
def _opened(
    model: str | None, suite: Suite, embedding: str | None, directory: Path
) -> Iterator[tuple[FusionEngine, Progress]]:
    """An engine over the store in a directory, and progress bars."""
    from fusionrag_integrations.engine import FusionEngine

    with (
        bars() as progress,
        FusionEngine.from_pretrained(
            find_model(model),
            store=directory / "store",
            embedding=None if embedding is None else imported(embedding),
            chunk_tokens=suite.chunk_tokens,
        ) as engine,
    ):
        yield engine, progress


@contextmanager
def _directory(path: Path | None) -> Iterator[Path]:
    if path is not None:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInputError(f"--out {path} can't be made: {error.strerror}.") from error
        yield path
        return
    with TemporaryDirectory(prefix="fusionrag-bench-") as made:
        yield Path(made)


def _suite(
    dataset: str, data: Path | None, limit: int | None, kinds: str | None, seed: int
) -> Suite:
    from fusionrag_integrations.bench.datasets import DATASET_NAMES, load_dataset
    from fusionrag_integrations.bench.suites import published_suite
    from fusionrag_integrations.demo.suites import demo_suite, hard_suite

    own = {"demo": demo_suite, "hard": hard_suite}
    if dataset in own:
        chosen = {} if kinds is None else {"kinds": tuple(kinds.split(","))}
        return own[dataset](seed, limit or QUESTIONS_A_KIND, **chosen)
    if dataset not in DATASET_NAMES:
        raise InvalidInputError(
            f"Unknown dataset {dataset!r}; known are {', '.join((*own, *DATASET_NAMES))}."
        )
    if kinds is not None:
        raise InvalidInputError(f"--kinds are of {' and '.join(own)}, not of {dataset}.")
    if data is None:
        raise InvalidInputError(f"Data set {dataset} is read from a file: give it with --data.")
    return published_suite(load_dataset(dataset, data, limit, seed))


def _kinds(listed: str) -> list[Any]:
    from fusionrag_integrations.bench.strategies import PlacedKV

    kinds, known = listed.split(","), get_args(PlacedKV)
    if unknown := set(kinds) - set(known):
        raise InvalidInputError(f"--kv {', '.join(sorted(unknown))}: choose {', '.join(known)}.")
    return kinds
