"""What the commands share: the console, options, progress bars, opening a store with its model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fusionrag_integrations.cli.models import MODEL_HELP, find_model
from fusionrag_integrations.documents.named import imported
from fusionrag_integrations.store.objects.opening import is_url

if TYPE_CHECKING:
    from fusionrag_integrations.engine import FusionEngine
    from fusionrag_integrations.support.threads import Closable

Opened = TypeVar("Opened", bound="Closable")

SECONDS_BETWEEN_LINES = 10.0  # of progress, where there is no terminal

out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)


class FilePath(click.Path):
    """A path; an empty one and one with a null byte are refused."""

    def __init__(self, **given: Any) -> None:
        super().__init__(path_type=Path, **given)

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Any:
        if not os.fspath(value):
            self.fail("it is empty; give '.' for this directory.", param, ctx)
        if "\0" in os.fspath(value):
            self.fail(f"{value!r} holds a null byte, which no path can.", param, ctx)
        return super().convert(value, param, ctx)


class StorePlace(FilePath):
    """A store's directory, or its URL."""

    name = "place"

    def __init__(self) -> None:
        super().__init__(file_okay=False)

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Any:
        if not is_url(value):
            return super().convert(value, param, ctx)
        if value.lower().startswith("memory:"):
            self.fail(f"{value} is gone when this command ends; give a directory.", param, ctx)
        return value


store_option = click.option(
    "--store",
    type=StorePlace(),
    required=True,
    help="The store's directory, or a URL such as s3://bucket/prefix.",
)
model_option = click.option(
    "--model",
    help=f"{MODEL_HELP}  [default: the store's own; for a new store 'demo']",
)
embedding_option = click.option(
    "--embedding",
    metavar="MODULE:NAME",
    help="A LangChain or LlamaIndex embedding, or what makes one, from an importable module.  "
    "[default: a small lexical one]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


salt_option = click.option(
    "--salt",
    default="",
    envvar="FUSIONRAG_SALT",
    help="The store's secret, if it has one; better given as FUSIONRAG_SALT in the environment.",
)


def open_engine(
    model: str | None,
    store: Path | str,
    embedding: str | None,
    salt: str = "",
    chunk_tokens: int | None = None,
    kv_format: Any = None,
    kv: Any = None,
) -> FusionEngine:
    from fusionrag_integrations.engine import FusionEngine

    with err.status("Loading the model"):
        engine = FusionEngine.from_pretrained(
            model_for(model, store),
            store=store,
            embedding=None if embedding is None else imported(embedding),
            chunk_tokens=chunk_tokens,
            kv_format=kv_format,
            salt=salt,
            kv=kv,
        )
    return closed_later(engine)


def model_for(model: str | None, store: Path | str) -> str | Path:
    """The model of this name; where there is no name, the store's own, or the demo's."""
    from fusionrag_integrations.store.stored_info import is_store, stored_info

    if model is None and is_store(store):
        return stored_info(store).model_source
    return find_model(model)


def closed_later(opened: Opened) -> Opened:
    """What was opened, which is closed when the command ends."""
    click.get_current_context().with_resource(opened)
    return opened


def existing(store: Path | str) -> Path | str:
    """The store's place; raises `StoreNotFoundError` where a store would have to be made."""
    from fusionrag_integrations.store.stored_info import stored_info

    stored_info(store)
    return store


@contextmanager
def bars() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar for each stage that reports; where no terminal is, a line now and then."""
    if not err.is_terminal:
        with _lines() as tell:
            yield tell
        return
    columns = (
        TextColumn("{task.description:>9}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err) as shown:
        tasks: dict[str, Any] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = shown.add_task(stage, total=total)
            shown.update(tasks[stage], completed=done, total=total)

        yield report


@contextmanager
def _lines() -> Iterator[Callable[[str, int, int], None]]:
    """Where each stage is now and then, and where it ended, for a file or a pipe."""
    stage, line, told = "", "", monotonic()

    def report(now: str, done: int, total: int) -> None:
        nonlocal stage, line, told
        if line and now != stage:
            err.print(line, markup=False)
        stage, line = now, f"{now} {done}/{total}"
        if monotonic() - told >= SECONDS_BETWEEN_LINES:
            err.print(line, markup=False)
            line, told = "", monotonic()

    try:
        yield report
    finally:
        if line:
            err.print(line, markup=False)


def print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))
