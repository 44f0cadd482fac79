"""The command that answers from a store: ask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fusionrag_integrations.cli.console import (
    FilePath,
    embedding_option,
    err,
    existing,
    json_option,
    model_option,
    open_engine,
    out,
    print_json,
    salt_option,
    store_option,
)
from fusionrag_integrations.cli.numbers import SHARE, count
from fusionrag_integrations.errors import InvalidInputError

if TYPE_CHECKING:
    from fusionrag_integrations.documents.handles import SearchHit
    from fusionrag_integrations.serving.answer import Answer


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
    help="Which stored KV to use; 'none' is full attention.  [default: fused, if KV is stored]",
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
    store: Path | str,
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
    from fusionrag_integrations.documents.handles import document_order
    from fusionrag_integrations.prompt import question_prompt
    from fusionrag_integrations.serving.settings import AnswerSettings
    from fusionrag_integrations.support.atomic_files import check_output

    if explain is not None:
        check_output(explain)  # before the work, not behind it
    engine = open_engine(model, existing(store), embedding, salt)
    hits = document_order(engine.store.search(question, k, scopes=scopes or None))
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
        print_json(_as_json(question, answer, hits))
    else:
        out.print(answer.text.strip(), markup=False)
        _tell(answer, len(hits))
    if explain is not None:
        answer.explain().save(explain)


def _as_json(question: str, answer: Answer, hits: Sequence[SearchHit]) -> dict[str, Any]:
    retrieved = [
        asdict(hit.handle)
        | {
            "document_id": hit.chunk.document_id,
            "title": hit.chunk.title,
            "score": hit.score,
        }
        for hit in hits
    ]
    asked = {"question": question, "answer": answer.text.strip(), "retrieved": retrieved}
    return asked | answer.report()


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
        kind = f"{fallback.used} KV" if fallback.used else "no KV"
        err.print(
            f"{kind} for a chunk of {fallback.document_id}: {fallback.reason}",
            style="dim",
            markup=False,
        )
