"""The command that checks a model and a store: check."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
from rich.table import Table

from fusionrag_integrations.cli.console import (
    FilePath,
    bars,
    embedding_option,
    existing,
    json_option,
    model_option,
    open_engine,
    out,
    print_json,
    salt_option,
    store_option,
)
from fusionrag_integrations.cli.models import find_model
from fusionrag_integrations.cli.numbers import count
from fusionrag_integrations.store.kv.types import KVFormat

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusionrag_integrations.check import CheckReport
    from fusionrag_integrations.documents.types import Document


@click.command()
@store_option
@model_option
@embedding_option
@salt_option
@click.option(
    "--questions",
    type=count(),
    default=20,
    show_default=True,
    help="How many to ask, at most; they are made from the store's chunks.",
)
@click.option(
    "--estimate",
    "paths",
    multiple=True,
    type=FilePath(exists=True),
    help="Also say what it would take to index these files into a new store; may be repeated.",
)
@click.option(
    "--chunk-tokens",
    type=count(),
    help="For --estimate where there is no store yet.  [default: 256]",
)
@click.option(
    "--kv-format",
    type=click.Choice(get_args(KVFormat)),
    help="For --estimate where there is no store yet.  [default: the model's dtype]",
)
@json_option
def check(
    store: Path | str,
    model: str | None,
    embedding: str | None,
    salt: str,
    questions: int,
    paths: tuple[Path, ...],
    chunk_tokens: int | None,
    kv_format: Any,
    as_json: bool,
) -> None:
    """Check your model and store: is reuse exact, how close to full attention, how much sooner?

    Asks questions made from the store's own chunks, so that none need to be written. Each is
    answered under full attention, by plain reuse (isolated KV as it is stored) and from fused KV
    with 0, 5 and 15% of the tokens recomputed. Changes nothing. Ends with what to set. Exit status
    1 if recomputing everything doesn't give what the model gives by itself.

    \b
    fusionrag check --store my-store
    fusionrag check --store new-store --model my-model --estimate docs/     before indexing
    """
    from fusionrag_integrations.documents.readers import read_documents
    from fusionrag_integrations.store.stored_info import is_store

    documents = list(read_documents(paths)) if paths else None
    if documents and not is_store(store):
        report = _without_store(model, documents, chunk_tokens, kv_format)
    else:
        engine = open_engine(model, existing(store), embedding, salt, chunk_tokens, kv_format)
        with bars() as progress:
            report = engine.check(questions, estimate=documents, progress=progress)
    if as_json:
        print_json(asdict(report))
    else:
        _show(report)
    if report.exact is False:
        raise click.exceptions.Exit(1)


def _without_store(
    model: str | None,
    documents: Sequence[Document],
    chunk_tokens: int | None,
    kv_format: KVFormat | None,
) -> CheckReport:
    """Nothing but an estimate, and no store is made for it."""
    from fusionrag_integrations.check import CheckReport, estimate_ingest
    from fusionrag_integrations.engine import DEFAULT_CHUNK_TOKENS
    from fusionrag_integrations.execution.hf.model import CausalModel
    from fusionrag_integrations.store.kv.record_store import format_of

    loaded = CausalModel.load(find_model(model))
    with bars() as progress:
        estimate = estimate_ingest(
            loaded,
            documents,
            DEFAULT_CHUNK_TOKENS if chunk_tokens is None else chunk_tokens,
            kv_format or format_of(loaded.dtype),
            progress,
        )
    return CheckReport.of_estimate(loaded, estimate)


def _show(report: CheckReport) -> None:
    facts = report.facts
    out.print(
        f"Model type {facts.type}, {'' if facts.tested else 'not '}tested with every release; "
        f"weights: {facts.weights}; {facts.kv_bytes:,} bytes of KV a token in {facts.layers} "
        "layers.",
        markup=False,
    )
    if report.exact is not None:
        questions = "1 question" if report.questions == 1 else f"{report.questions} questions"
        out.print(
            f"{report.model}: {questions}, over prompts of about {report.prompt_tokens:,} tokens.",
            markup=False,
        )
        told = "gives" if report.exact else "doesn't give"
        out.print(
            f"{'Exact' if report.exact else 'Not exact'}: recomputing everything {told} the "
            f"model's own logits (off by {report.deviation:.0e} of their spread)."
        )
        out.print(_table(report))
    if disk := report.disk:
        out.print(
            f"On disk: {_size(disk.bytes)} of KV for {disk.chunks:,} chunks, "
            f"{_size(disk.bytes_per_chunk)} a chunk, {disk.bytes_per_token:,} bytes a token."
        )
    if estimate := report.estimate:
        out.print(
            f"To ingest {estimate.documents:,} documents, {estimate.chunks:,} chunks of "
            f"{estimate.tokens:,} tokens: {_size(estimate.bytes)} of KV as {estimate.kv_format}, "
            f"and about {_duration(estimate.seconds)} here to compute it."
        )
    out.print(report.verdict, markup=False)


def _table(report: CheckReport) -> Table:
    table = Table("", "ratio", "equal answers", "recovered", "same token", "speed-up", box=None)
    for row in report.rows:
        table.add_row(
            "fused KV" if row.kv == "fused" else "plain reuse",
            f"{row.ratio:.0%}",
            row.equal_in_words,
            row.recovered_in_words,
            f"{row.agreement:.0%}",
            f"{row.speedup:.1f}x",
        )
    return table


def _size(nbytes: float) -> str:
    for unit in ("KB", "MB"):
        nbytes /= 1000
        if nbytes < 1000:
            return f"{nbytes:.1f} {unit}"
    return f"{nbytes / 1000:,.1f} GB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    minutes = round(seconds / 60)
    return f"{minutes} minutes" if minutes < 120 else f"{minutes / 60:.0f} hours"
