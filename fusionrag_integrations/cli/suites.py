"""What the commands share that ask a model questions: calibrate, and bench quality."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from fusionrag_integrations.cli.console import FilePath, bars, embedding_option
from fusionrag_integrations.cli.models import MODEL_HELP, find_model
from fusionrag_integrations.cli.numbers import SEED, count
from fusionrag_integrations.documents.named import imported
from fusionrag_integrations.errors import InvalidInputError

if TYPE_CHECKING:
    from fusionrag_integrations.bench.suites import Suite
    from fusionrag_integrations.engine import FusionEngine
    from fusionrag_integrations.support.progress import Progress

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
            command(lambda: make_suite(dataset, data, limit, kinds, rest["seed"]), **rest)

        seed_option = click.option(
            "--seed", type=SEED, default=seed, show_default=True, help="Of the questions drawn."
        )
        own = (model_option, dataset_option, data_option, limit_option, kinds_option, seed_option)
        for option in reversed((*own, embedding_option)):
            run = option(run)
        return run

    return decorate


@contextmanager
def opened(
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
def directory(path: Path | None) -> Iterator[Path]:
    if path is not None:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInputError(f"--out {path} can't be made: {error.strerror}.") from error
        yield path
        return
    with TemporaryDirectory(prefix="fusionrag-bench-") as made:
        yield Path(made)


def make_suite(
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
