"""Commands over a store: index, delete, ask, inspect, verify, repair; and the demo."""

from __future__ import annotations

from collections import defaultdict
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
    existing,
    imported,
    json_option,
    model_option,
    open_engine,
    out,
    print_json,
    salt_option,
    store_option,
)
from fusionrag_integrations.cli.models import MODEL_HELP, find_model
from fusionrag_integrations.cli.numbers import SHARE, count
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.types import KVFormat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fusionrag_integrations.answer import Answer
    from fusionrag_integrations.catalog import Catalog
    from fusionrag_integrations.records import RecordFiles
    from fusionrag_integrations.repair import Problem

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
    "--update", is_flag=True, help="Also delete the store's documents that are not in PATHS."
)
@json_option
def index(
    paths: tuple[Path, ...],
    store: Path,
    model: str | None,
    embedding: str | None,
    salt: str,
    chunk_tokens: int | None,
    kv_format: Any,
    update: bool,
    as_json: bool,
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
    from fusionrag_integrations.documents import read_documents

    passed_over: list[Path] = []
    documents = list(read_documents(paths, passed_over.append))
    engine = open_engine(model, store, embedding, salt, chunk_tokens, kv_format)
    with bars() as progress:
        report = engine.ingest(documents, delete_others=update, progress=progress)
    if as_json:
        print_json(asdict(report) | {"passed_over": [str(path) for path in passed_over]})
        return
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
    document_ids: tuple[str, ...], scope: str, store: Path, embedding: str | None, as_json: bool
) -> None:
    """Delete documents by their ids, with all KV made from or with them. Needs no model.

    Chunks that had a deleted one as neighbour are answered from isolated KV until the next
    `index`. Exit status 1 where an id names no document; the others are deleted all the same.
    """
    from fusionrag_integrations.corpus import KV_DIRECTORY, Corpus
    from fusionrag_integrations.ingest import delete_documents
    from fusionrag_integrations.records import RecordFiles

    corpus = closed_later(Corpus.open(store, None if embedding is None else imported(embedding)))
    scopes = defaultdict(list)
    for known in corpus.catalog.documents():
        scopes[known.id].append(known.scope)
    unknown = sorted(name for name in set(document_ids) if scope not in scopes[name])
    records = RecordFiles(store / KV_DIRECTORY, corpus.catalog.info.record_signature)
    deleted = delete_documents(corpus, records, document_ids, scope)
    if as_json:
        print_json({"deleted": deleted, "unknown": unknown})
    else:
        out.print(f"{deleted} documents deleted from {store}.", markup=False)
        for document_id in unknown:
            told = f"There is no document {document_id!r}{f' in scope {scope!r}' if scope else ''}"
            if others := ", ".join(repr(other) for other in scopes[document_id]):
                told += f", but in scope {others}: give it with --scope"
            err.print(f"{told}.", markup=False)
    if unknown:
        raise click.exceptions.Exit(1)


@click.command()
@click.argument("question")
@store_option
@model_option
@embedding_option
@salt_option
@click.option("-k", type=count(), default=5, show_default=True, help="Chunks to retrieve.")
@click.option(
    "--scope", "scopes", multiple=True, help="Use this scope only; may be repeated.  [default: all]"
)
@click.option("--selector", default="fusionrag", show_default=True, help="How tokens are chosen.")
@click.option("--ratio", type=SHARE, default=0.15, show_default=True, help="Share to recompute.")
@click.option(
    "--kv",
    type=click.Choice(["fused", "isolated", "none"]),
    default="fused",
    show_default=True,
    help="Which stored KV to use; 'none' is full attention.",
)
@click.option("--max-tokens", type=count(), default=256, show_default=True, help="Longest answer.")
@click.option(
    "--explain",
    type=FilePath(),
    help="Write a page (HTML) that shows how the answer came about.",
)
@json_option
def ask(
    question: str,
    store: Path,
    model: str | None,
    embedding: str | None,
    salt: str,
    k: int,
    scopes: tuple[str, ...],
    selector: str,
    ratio: float,
    kv: Any,
    max_tokens: int,
    explain: Path | None,
    as_json: bool,
) -> None:
    """Retrieve the chunks nearest to QUESTION and answer from their stored KV."""
    from fusionrag_integrations.corpus import document_order
    from fusionrag_integrations.durable import check_output
    from fusionrag_integrations.prompt import question_prompt
    from fusionrag_integrations.types import AnswerSettings

    if explain is not None:
        check_output(explain)  # before the work, not behind it
    engine = open_engine(model, existing(store), embedding, salt)
    hits = document_order(engine.corpus.search(question, k, scopes=scopes or None))
    if not hits:
        raise InvalidInputError(
            f"The store at {store} holds no chunks"
            f"{' in scope ' + ', '.join(scopes) if scopes else ''}; index documents first."
        )
    settings = AnswerSettings(
        kv=kv,
        selector=selector,
        ratio=ratio,
        handles=tuple(hit.handle for hit in hits),
        scopes=scopes or None,
        max_tokens=max_tokens,
    )
    answer = engine.answer(question_prompt([h.chunk.text for h in hits], question), settings)
    if as_json:
        print_json(
            {
                "question": question,
                "answer": answer.text.strip(),
                "retrieved": [
                    asdict(hit.handle)
                    | {
                        "document_id": hit.chunk.document_id,
                        "title": hit.chunk.title,
                        "score": hit.score,
                    }
                    for hit in hits
                ],
            }
            | answer.report()
        )
    else:
        out.print(answer.text.strip(), markup=False)
        _tell(answer, len(hits))
    if explain is not None:
        answer.explain().save(explain)


def _tell(answer: Answer, found: int) -> None:
    """How an answer came about, in a few lines. found: how many chunks were retrieved."""
    usage = answer.usage
    err.print(
        f"[dim]{found} chunks, {answer.fused_chunks} fused and {answer.isolated_chunks} "
        f"isolated; of {usage.prompt_tokens} prompt tokens {usage.reused_tokens} reused, "
        f"{usage.recomputed_tokens} recomputed, {usage.fresh_tokens} computed afresh; first "
        f"token after {answer.ttft.total:.0f} ms[/dim]"
    )
    if answer.full_reason:
        err.print(f"The whole prompt was computed: {answer.full_reason}", style="dim", markup=False)
    for fallback in answer.fallbacks:
        told = f"{fallback.used} KV" if fallback.used else "no KV"
        err.print(
            f"{told} for a chunk of {fallback.document_id}: {fallback.reason}",
            style="dim",
            markup=False,
        )


@click.command()
@click.option("--model", default="smollm2", show_default=True, help=MODEL_HELP)
@json_option
def demo(model: str, as_json: bool) -> None:
    """See it work: a pretrained model over real text, three ways to answer, side by side.

    \b
    full_attention       the model reads the whole prompt: the reference
    full_reuse           stored KV of each chunk alone, nothing recomputed
    fusionrag            KV fused with neighbouring chunks, 15% of the tokens recomputed

    Each question is asked over the six paragraphs of Wikipedia that are found for it. They were
    chosen for SmolLM2: it answers them under full attention.

    With `--model demo`, the bundled model is asked 300 questions over invented documents:
    single_hop asks for a fact that stands in one chunk, back_reference for one whose sentence
    refers back to the chunk before, bridge joins two documents. A fourth way is fusionrag_isolated:
    as fusionrag, but with the neighbours off.
    """
    from fusionrag_integrations.bench.machine import where_and_when
    from fusionrag_integrations.bench.tables import answers_table, rows_table
    from fusionrag_integrations.demo import MODEL_DIR
    from fusionrag_integrations.demo.run import invented_demo, real_text_demo, run_demo

    found = find_model(model)
    shown = invented_demo() if found == MODEL_DIR else real_text_demo()
    with bars() as progress:
        result = run_demo(found, shown, progress)
    if as_json:
        rows = [asdict(row) for row in result.rows]
        print_json(where_and_when() | {"model": result.model, "note": shown.note, "rows": rows})
        return
    out.print(answers_table(result.outcomes, shown.examples))
    out.print(rows_table(result.rows))
    out.print(
        f"{result.ingest.chunks} chunks indexed in {result.ingest.seconds:.0f} s. {shown.note}\n"
        "Right: an accepted answer stands in the text. Kept: of the questions that full attention "
        "answers rightly. Redone: share of the chunks' tokens that is recomputed, median. TTFT: "
        "time to first token, median; speed-up: full attention's TTFT over it, median."
    )


@click.command()
@store_option
@json_option
def inspect(store: Path, as_json: bool) -> None:
    """Show what a store holds: documents, chunks, KV, and the model it is for."""
    catalog, kv = _opened(store)
    stored = set(kv.keys())
    facts = (
        asdict(catalog.info)
        | asdict(catalog.counts())
        | {
            "records": len(stored),
            "missing_records": len(catalog.live_keys() - stored),
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


@click.command()
@store_option
@json_option
def verify(store: Path, as_json: bool) -> None:
    """Check all of a store: catalog, documents, index and KV records. Changes nothing.

    Exit status 1 on a problem; `repair` mends it.
    """
    from fusionrag_integrations.repair import find_damage

    _say(store, find_damage, "verify", as_json)


@click.command()
@store_option
@json_option
def repair(store: Path, as_json: bool) -> None:
    """Mend what `verify` finds, and leave all else as it is. Needs no model.

    A damaged catalog is rebuilt from the store's other files. KV that is damaged is removed: the
    next `index` computes it again. Exit status 1 where something can't be mended.
    """
    from fusionrag_integrations import repair as room

    _say(store, room.repair, "repair", as_json)


def _say(store: Path, work: Callable[..., Iterator[Problem]], name: str, as_json: bool) -> None:
    """Show what is found; exit status 1 if any of it is left."""
    checked = 0

    def told(done: int, total: int) -> None:
        nonlocal checked
        checked = total
        progress(name, done, total)

    with bars() as progress:
        problems = list(work(store, told))
    left = [problem for problem in problems if not problem.mended]
    if as_json:
        listed = [asdict(problem) | {"path": str(problem.path)} for problem in problems]
        print_json({"records": checked, "problems": listed})
    else:
        for problem in problems:
            mended = "mended: " if problem.mended else ""
            out.print(f"{mended}{problem.error}: {problem.message}", markup=False)
        found = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        out.print(f"{checked} records checked, {found}.")
        if name == "repair" and any(problem.area in ("kv", "index") for problem in problems):
            out.print("Run `fusionrag index` again to compute what is missing.")
    if left:
        raise click.exceptions.Exit(1)


def _opened(store: Path) -> tuple[Catalog, RecordFiles]:
    """What a store holds, opened without a model."""
    from fusionrag_integrations.corpus import KV_DIRECTORY, open_catalog
    from fusionrag_integrations.records import RecordFiles

    catalog = closed_later(open_catalog(store))
    return catalog, RecordFiles(store / KV_DIRECTORY, catalog.info.record_signature)
