"""The `fusionrag` command: index documents, ask questions, look at a store.

Heavy modules are imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fusionrag_integrations.errors import FusionRAGError, InvalidInputError

if TYPE_CHECKING:
    from fusionrag_integrations.catalog import Catalog
    from fusionrag_integrations.engine import FusionEngine
    from fusionrag_integrations.store import FileKVStore

out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)

store_option = click.option(
    "--store",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="The store's directory.",
)
model_option = click.option(
    "--model",
    help="A model directory or hub name.  [default: the store's own; for a new store 'demo', the "
    "small one that comes with the package]",
)
embedding_option = click.option(
    "--embedding",
    metavar="MODULE:NAME",
    help="A LangChain or LlamaIndex embedding, or what makes one, from an importable module.  "
    "[default: a small lexical one]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


class _Commands(click.Group):
    """Turns the package's own errors into one clear line and exit status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FusionRAGError as error:
            err.print(f"[red]error:[/red] {type(error).__name__}: ", end="")
            err.print(str(error), markup=False)
            ctx.exit(1)
        except KeyboardInterrupt:
            err.print("Interrupted. What was computed is kept: run the command again to go on.")
            ctx.exit(130)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fusionrag-integrations")
def main() -> None:
    """Answer questions from precomputed, fused KV caches of your chunks.

    \b
    First steps:
      fusionrag demo                              see it work, with the bundled model
      fusionrag index docs/ --store my-store      chunk, embed and prefill your files
      fusionrag ask "..." --store my-store        retrieve and answer
    """


@main.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@store_option
@model_option
@embedding_option
@click.option("--chunk-tokens", type=int, help="Longest chunk, for a new store.  [default: 256]")
@click.option(
    "--update", is_flag=True, help="Also delete the store's documents that are not in PATHS."
)
@json_option
def index(
    paths: tuple[Path, ...],
    store: Path,
    model: str | None,
    embedding: str | None,
    chunk_tokens: int | None,
    update: bool,
    as_json: bool,
) -> None:
    """Chunk, embed and prefill files: .txt, .md and .jsonl, or directories of them.

    A .jsonl file holds one document a line: {"text": ...}, with an optional "id", "title",
    "scope" and "metadata". Documents whose ids are known and whose text has changed replace the
    old ones; with --update the store then holds just these documents. Give the same PATHS each
    time: a file's id is its path below the directory that holds all of them. May be interrupted
    and run again: nothing is computed twice.
    """
    from fusionrag_integrations.documents import read_documents

    documents = list(read_documents(paths))
    engine = _engine(model, store, embedding, chunk_tokens)
    with _bars() as progress:
        report = engine.ingest(documents, delete_others=update, progress=progress)
    if as_json:
        _print_json(asdict(report))
        return
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


@main.command()
@click.argument("document_ids", metavar="DOCUMENT...", nargs=-1, required=True)
@store_option
@embedding_option
@json_option
def delete(
    document_ids: tuple[str, ...], store: Path, embedding: str | None, as_json: bool
) -> None:
    """Delete documents by their ids, with all KV made from or with them. Needs no model.

    Chunks that had a deleted one as neighbour are answered from isolated KV until the next
    `index`. Exit status 1 where an id names no document; the others are deleted all the same.
    """
    from fusionrag_integrations.corpus import Corpus
    from fusionrag_integrations.ingest import delete_documents
    from fusionrag_integrations.store import FileKVStore

    corpus = Corpus.open(store, None if embedding is None else _imported(embedding))
    unknown = sorted(set(document_ids) - set(corpus.catalog.document_ids()))
    kv = FileKVStore(store / "kv", corpus.catalog.info.signature)
    deleted = delete_documents(corpus, kv, document_ids)
    if as_json:
        _print_json({"deleted": deleted, "unknown": unknown})
    else:
        out.print(f"{deleted} documents deleted from {store}.", markup=False)
        for document_id in unknown:
            err.print(f"There is no document {document_id!r}.", markup=False)
    if unknown:
        raise click.exceptions.Exit(1)


@main.command()
@click.argument("question")
@store_option
@model_option
@embedding_option
@click.option("-k", type=int, default=5, show_default=True, help="Chunks to retrieve.")
@click.option(
    "--scope", "scopes", multiple=True, help="Use this scope only; may be repeated.  [default: all]"
)
@click.option("--selector", default="fusionrag", show_default=True, help="How tokens are chosen.")
@click.option("--ratio", type=float, default=0.15, show_default=True, help="Share to recompute.")
@click.option(
    "--kv",
    type=click.Choice(["fused", "isolated", "none"]),
    default="fused",
    show_default=True,
    help="Which stored KV to use; 'none' is full attention.",
)
@click.option("--max-tokens", type=int, default=256, show_default=True, help="Longest answer.")
@json_option
def ask(
    question: str,
    store: Path,
    model: str | None,
    embedding: str | None,
    k: int,
    scopes: tuple[str, ...],
    selector: str,
    ratio: float,
    kv: Any,
    max_tokens: int,
    as_json: bool,
) -> None:
    """Retrieve the chunks nearest to QUESTION and answer from their stored KV."""
    from fusionrag_integrations.corpus import document_order
    from fusionrag_integrations.prompt import question_prompt
    from fusionrag_integrations.types import AnswerSettings

    engine = _engine(model, _existing(store), embedding)
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
        _print_json(
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
        return
    out.print(answer.text.strip(), markup=False)
    usage = answer.usage
    err.print(
        f"[dim]{len(hits)} chunks, {answer.fused_chunks} fused and {answer.isolated_chunks} "
        f"isolated; of {usage.prompt_tokens} prompt tokens {usage.reused_tokens} reused, "
        f"{usage.recomputed_tokens} recomputed, {usage.fresh_tokens} computed afresh; first "
        f"token after {answer.ttft.total:.0f} ms[/dim]"
    )


@main.command()
@json_option
def demo(as_json: bool) -> None:
    """See it work: the bundled model and corpus, four ways to answer, side by side.

    \b
    full_attention       the model reads the whole prompt: the reference
    full_reuse           stored KV of each chunk alone, nothing recomputed
    fusionrag            KV fused with neighbouring chunks, 15% of the tokens recomputed
    fusionrag_isolated   as fusionrag, but with the neighbours off

    Questions of three kinds: single_hop asks for a fact that stands in one chunk, back_reference
    for one whose sentence refers back to the chunk before, bridge joins two documents.
    """
    from fusionrag_integrations.bench.tables import answers_table, rows_table
    from fusionrag_integrations.demo.run import run_demo

    with _bars() as progress:
        result = run_demo(progress)
    if as_json:
        _print_json({"model": result.model, "rows": [asdict(row) for row in result.rows]})
        return
    out.print(answers_table(result.outcomes))
    out.print(rows_table(result.rows))
    out.print(
        f"{result.ingest.chunks} chunks indexed in {result.ingest.seconds:.0f} s. TTFT: median "
        "time to first token; speed-up: full attention's TTFT over it, median over questions."
    )


@main.command()
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
    if as_json:
        _print_json(facts)
        return
    table = Table(show_header=False, title=escape(str(store)))
    for name, value in facts.items():
        table.add_row(
            name.replace("_", " "), f"{value:,}" if isinstance(value, int) else escape(value)
        )
    out.print(table)


@main.command()
@store_option
@json_option
def verify(store: Path, as_json: bool) -> None:
    """Check every KV record of a store: checksum, format, model. Exit status 1 on a problem."""
    from fusionrag_integrations.store import verify as verify_records

    catalog, kv = _opened(store)
    keys = set(kv.keys())
    with _bars() as progress:
        problems = [
            {"path": str(p.path), "error": type(p.error).__name__, "message": str(p.error)}
            for p in verify_records(kv, lambda done, total: progress("verify", done, total))
        ]
    problems += [
        {"path": key, "error": "KVMissingError", "message": f"There is no record {key}."}
        for key in sorted(catalog.live_keys() - keys)
    ]
    if as_json:
        _print_json({"records": len(keys), "problems": problems})
    else:
        for problem in problems:
            out.print(f"{problem['error']}: {problem['message']}", markup=False)
        found = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        out.print(f"{len(keys)} records checked, {found}.")
    if problems:
        raise click.exceptions.Exit(1)


def _opened(store: Path) -> tuple[Catalog, FileKVStore]:
    """What a store holds, opened without a model."""
    from fusionrag_integrations.catalog import CATALOG_FILE, Catalog
    from fusionrag_integrations.store import FileKVStore

    catalog = Catalog.open(store / CATALOG_FILE)
    return catalog, FileKVStore(store / "kv", catalog.info.signature)


def _existing(store: Path) -> Path:
    """The store's path; raises `StoreNotFoundError` where a store would have to be made."""
    from fusionrag_integrations.catalog import CATALOG_FILE, Catalog

    Catalog.open(store / CATALOG_FILE).close()
    return store


def _engine(
    model: str | None, store: Path, embedding: str | None, chunk_tokens: int | None = None
) -> FusionEngine:
    from transformers.utils.logging import disable_progress_bar

    from fusionrag_integrations.catalog import CATALOG_FILE, Catalog
    from fusionrag_integrations.demo import MODEL_DIR
    from fusionrag_integrations.engine import FusionEngine

    catalog_path = store / CATALOG_FILE
    if model is None and catalog_path.exists():
        with Catalog.open(catalog_path) as catalog:
            model = catalog.info.model_source
    disable_progress_bar()  # it would be drawn over ours
    with err.status("Loading the model"):
        return FusionEngine.from_pretrained(
            MODEL_DIR if model in (None, "demo") else model,
            store=store,
            embedding=None if embedding is None else _imported(embedding),
            chunk_tokens=chunk_tokens,
        )


def _imported(name: str) -> object:
    """The embedding that MODULE:NAME names, called first where it is a class or a function."""
    module, _, attribute = name.partition(":")
    try:
        found: object = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidInputError(
            f"--embedding {name!r} can't be imported ({error}). Give MODULE:NAME of something in "
            "an installed module, or in one on PYTHONPATH."
        ) from error
    if isinstance(found, type | FunctionType):
        made: object = found()
        return made
    return found


@contextmanager
def _bars() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar for each stage that reports."""
    columns = (
        TextColumn("{task.description:>9}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err) as bars:
        tasks: dict[str, Any] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield report


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))
