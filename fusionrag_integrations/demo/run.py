"""What `fusionrag demo` does: index documents, ask questions over them several ways, compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from fusionrag_integrations.bench.comparison import Outcome, Question, Row, compare, summarise
from fusionrag_integrations.bench.strategies import FULL, REUSE, Strategy
from fusionrag_integrations.demo import CHUNK_TOKENS, CORPUS_PATH, real_text, tasks
from fusionrag_integrations.documents.readers import read_documents
from fusionrag_integrations.documents.types import Document
from fusionrag_integrations.engine import FusionEngine
from fusionrag_integrations.ingest.pipeline import IngestReport
from fusionrag_integrations.serving.settings import AnswerSettings
from fusionrag_integrations.support.progress import Progress

_OURS = AnswerSettings(ratio=0.15, break_even=False, max_tokens=tasks.MAX_TOKENS)
INVENTED_STRATEGIES = {
    "full_attention": replace(_OURS, kv="none"),
    "full_reuse": replace(_OURS, kv="isolated", selector="none"),
    "fusionrag": _OURS,
    "fusionrag_isolated": replace(_OURS, kv="isolated"),
}
REAL_TEXT_STRATEGIES = {
    name: strategy.settings(real_text.MAX_TOKENS)
    for name, strategy in {
        "full_attention": FULL,
        "full_reuse": REUSE,
        "fusionrag": Strategy("fusionrag", "fused", 0.15),
    }.items()
}


@dataclass(frozen=True, slots=True)
class Demo:
    """What is asked over what, and how.

    chunk_tokens: the longest chunk, in tiktoken tokens. questions: those that an engine which has
    ingested the documents is asked. strategies: by name, `full_attention` among them. note: what
    readers of the results have to know of the questions. examples: so many of each kind are shown.
    """

    documents: Sequence[Document]
    chunk_tokens: int
    questions: Callable[[FusionEngine], list[Question]]
    strategies: dict[str, AnswerSettings]
    note: str
    examples: int


@dataclass(frozen=True, slots=True)
class DemoResult:
    """Rows by strategy and kind of question, and every single answer behind them."""

    model: str
    ingest: IngestReport
    outcomes: tuple[Outcome, ...]
    rows: tuple[Row, ...]


def real_text_demo() -> Demo:
    """Questions over paragraphs of Wikipedia, for any model."""
    return Demo(
        documents=tuple(read_documents([real_text.PARAGRAPHS_PATH])),
        chunk_tokens=real_text.CHUNK_TOKENS,
        questions=real_text.load_questions,
        strategies=REAL_TEXT_STRATEGIES,
        note=real_text.NOTE,
        examples=3,
    )


def invented_demo(limit: int | None = None) -> Demo:
    """The bundled model's own questions, at most `limit` of each kind, over its invented world."""
    return Demo(
        documents=tuple(read_documents([CORPUS_PATH])),
        chunk_tokens=CHUNK_TOKENS,
        questions=lambda engine: tasks.load_questions(engine.store, limit=limit),
        strategies=INVENTED_STRATEGIES,
        note=tasks.NOTE,
        examples=1,
    )


def run_demo(model: str | Path, demo: Demo, progress: Progress) -> DemoResult:
    """Index in a directory that goes away afterwards, ask, and compare with full attention.

    model: as `FusionEngine.from_pretrained` takes it. Raises as that does, and `InvalidInputError`
    where the model's context holds too few tokens for the questions.
    """
    with TemporaryDirectory(prefix="fusionrag-demo-") as directory:
        store = Path(directory) / "store"
        with FusionEngine.from_pretrained(
            model, store=store, chunk_tokens=demo.chunk_tokens
        ) as engine:
            report = engine.ingest(demo.documents, progress=progress)
            outcomes = compare(
                engine,
                demo.questions(engine),
                demo.strategies,
                reference="full_attention",
                progress=lambda done, total: progress("ask", done, total),
            )
    return DemoResult(engine.model_name, report, tuple(outcomes), tuple(summarise(outcomes)))
