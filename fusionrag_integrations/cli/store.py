"""Commands that fill a store and show what it holds: index, delete, inspect."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
from rich.markup import escape
from rich.table import Table

from fusionrag_integrations.cli.console import (
    FilePath,
    bars,
    closed_later,
    embedding_option,
    err,
    json_option,
    model_option,
    open_engine,
    out,
    print_json,
    salt_option,
    store_option,
)
from fusionrag_integrations.cli.index_ray import (
    account_of,
    index_with_ray,
    print_account,
    ray_options,
    refuse_without_ray,
)
from fusionrag_integrations.cli.numbers import count
from fusionrag_integrations.documents.named import imported
from fusionrag_integrations.store.kv.types import KeptKV, KVFormat

if TYPE_CHECKING:
    from fusionrag_integrations.ingest import IngestReport

PASSED_OVER_SHOWN = 5


@click.command()
@click.argument("paths", nargs=-1, required=True, type=FilePath(exists=True))
@store_option
@model_option
@embedding_option
@salt_option
@click.option(
    "--chunk-tokens", type=count(), help="Longest chunk, for a new store.  [default: 256]"
)
@click.option(
    "--kv-format",
    type=click.Choice(get_args(KVFormat)),
    help="How KV is kept, for a new store.  [default: the model's dtype]",
)
@click.option(
    "--kv",
    type=click.Choice(get_args(KeptKV)),
    help="For a new store: 'none' keeps no KV, and each prompt is answered by the model's own full "
    "attention; so any model can be used.  [default: fused]",
)
@click.option(
    "--update", is_flag=True, help="Also delete the store's documents that are not in PATHS."
)
@ray_options
@json_option
def index(
    paths: tuple[Path, ...],
    store: Path | str,
    model: str | None,
    embedding: str | None,
    salt: str,
    chunk_tokens: int | None,
    kv_format: Any,
    kv: Any,
    update: bool,
    as_json: bool,
    **on_ray: Any,
) -> None:
    """Chunk, embed and prefill files: .txt, .md and .jsonl, or directories of them.

    In directories, what is hidden (.git), virtual environments, __pycache__ and node_modules are
    passed over; a file or directory that PATHS name is read whatever it is called.

    A .jsonl file holds one document a line: {"text": ...}, with an optional "id", "title",
    "scope" and "metadata". Documents whose ids are known and whose text has changed replace the
    old ones; with --update the store then holds just these documents. Give the same PATHS each
    time: a file's id is its path below the directory that holds all of them. May be interrupted
    and run again: nothing is computed twice.
    """
    from fusionrag_integrations.documents.readers import read_documents

    passed_over: list[Path] = []
    documents = list(read_documents(paths, passed_over.append))
    by_workers = None
    if on_ray["ray"] is None:
        refuse_without_ray(on_ray)
        engine = open_engine(model, store, embedding, salt, chunk_tokens, kv_format, kv)
        with bars() as progress:
            report = engine.ingest(documents, delete_others=update, progress=progress)
    else:
        how = {"chunk_tokens": chunk_tokens, "kv_format": kv_format, "salt": salt}
        by_workers = index_with_ray(
            *(documents, model, store, embedding, kv, on_ray), delete_others=update, **how
        )
        report = by_workers.ingest
    if as_json:
        account = account_of(by_workers) if by_workers else {}
        passed = [str(path) for path in passed_over]
        print_json(asdict(report) | account | {"passed_over": passed})
        return
    _print_report(report, passed_over, store)
    if by_workers:
        print_account(by_workers)


def _print_report(report: IngestReport, passed_over: Sequence[Path], store: Path | str) -> None:
    if passed_over:
        shown = ", ".join(str(path) for path in passed_over[:PASSED_OVER_SHOWN])
        more = "" if len(passed_over) <= PASSED_OVER_SHOWN else ", ..."
        err.print(f"Passed over {len(passed_over)}: {shown}{more}", style="dim", markup=False)
    out.print(
        f"{report.documents_new} documents added, {report.documents_changed} replaced, "
        f"{report.documents_unchanged} unchanged, {report.documents_deleted} deleted; "
        f"{report.chunks} chunks in {store}.",
        markup=False,
    )
    out.print(
        f"Computed isolated KV of {report.isolated_computed} chunks and fused KV of "
        f"{report.fused_computed} in {report.seconds:.1f} s."
    )


@click.command()
@click.argument("document_ids", metavar="DOCUMENT...", nargs=-1, required=True)
@click.option("--scope", default="", help="The scope of the documents.  [default: none]")
@store_option
@embedding_option
@json_option
def delete(
    document_ids: tuple[str, ...],
    scope: str,
    store: Path | str,
    embedding: str | None,
    as_json: bool,
) -> None:
    """Delete documents by their ids, with all KV made from or with them. Needs no model.

    Chunks that had a deleted one as neighbour are answered from isolated KV until the next
    `index`. Exit status 1 where an id names no document; the others are deleted all the same.
    """
    from fusionrag_integrations.store.deletion import delete_documents
    from fusionrag_integrations.store.store import Store

    opened = closed_later(Store.open(store, None if embedding is None else imported(embedding)))
    scopes = defaultdict(list)
    for known in opened.catalog.documents.all():
        scopes[known.id].append(known.scope)
    unknown = sorted(name for name in set(document_ids) if scope not in scopes[name])
    deleted = delete_documents(opened, opened.records, document_ids, scope)
    if as_json:
        print_json({"deleted": deleted, "unknown": unknown})
    else:
        out.print(f"{deleted} documents deleted from {store}.", markup=False)
        for document_id in unknown:
            line = f"There is no document {document_id!r}{f' in scope {scope!r}' if scope else ''}"
            if others := ", ".join(repr(other) for other in scopes[document_id]):
                line += f", but in scope {others}: give it with --scope"
            err.print(f"{line}.", markup=False)
    if unknown:
        raise click.exceptions.Exit(1)


@click.command()
@store_option
@json_option
def inspect(store: Path | str, as_json: bool) -> None:
    """Show what a store holds: documents, chunks, KV, and the model it is for."""
    from fusionrag_integrations.store.stored_files import StoredFiles

    opened = closed_later(StoredFiles(store))
    catalog, kv = opened.catalog, opened.records
    stored = set(kv.keys())
    facts = (
        asdict(catalog.info)
        | asdict(catalog.counts())
        | opened.facts
        | {
            "records": len(stored),
            "missing_records": len(catalog.kv.live_keys() - stored),
            "kv_bytes": kv.size_bytes(),
        }
    )
    del facts["probes"]
    if as_json:
        print_json(facts)
        return
    table = Table(show_header=False, title=escape(str(store)))
    for name, value in facts.items():
        table.add_row(
            name.replace("_", " "), f"{value:,}" if isinstance(value, int) else escape(value)
        )
    out.print(table)
