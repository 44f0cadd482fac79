"""What `fusionrag demo` does: index the bundled corpus, ask its questions four ways, compare."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from fusionrag_integrations.bench.comparison import Outcome, Row, compare, summarise
from fusionrag_integrations.corpus import Progress
from fusionrag_integrations.demo import CHUNK_TOKENS, CORPUS_PATH, MODEL_DIR
from fusionrag_integrations.demo.tasks import MAX_TOKENS, load_questions
from fusionrag_integrations.documents import read_documents
from fusionrag_integrations.engine import FusionEngine
from fusionrag_integrations.ingest import IngestReport
from fusionrag_integrations.types import AnswerSettings

_OURS = AnswerSettings(ratio=0.15, break_even=False, max_tokens=MAX_TOKENS)
STRATEGIES = {
    "full_attention": replace(_OURS, kv="none"),
    "full_reuse": replace(_OURS, kv="isolated", selector="none"),
    "fusionrag": _OURS,
    "fusionrag_isolated": replace(_OURS, kv="isolated"),
}


@dataclass(frozen=True, slots=True)
class DemoResult:
    """Rows by strategy and kind of question, and every single answer behind them."""

    model: str
    ingest: IngestReport
    outcomes: tuple[Outcome, ...]
    rows: tuple[Row, ...]


def run_demo(progress: Progress, limit: int | None = None) -> DemoResult:
    """Index in a directory that goes away afterwards, and ask at most `limit` questions a kind."""
    with TemporaryDirectory(prefix="fusionrag-demo-") as directory:
        engine = FusionEngine.from_pretrained(
            MODEL_DIR, store=Path(directory) / "store", chunk_tokens=CHUNK_TOKENS
        )
        report = engine.ingest(read_documents([CORPUS_PATH]), progress=progress)
        questions = load_questions(engine.corpus, limit=limit)
        outcomes = compare(
            engine,
            questions,
            STRATEGIES,
            reference="full_attention",
            progress=lambda done, total: progress("ask", done, total),
        )
        engine.corpus.close()
    rows = tuple(summarise(outcomes))
    return DemoResult(engine.model_name, report, tuple(outcomes), rows)
