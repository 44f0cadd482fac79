"""A program over the engine: ingest, answer, stream, and see how an answer came about."""

# ruff: noqa: T201
from __future__ import annotations

import asyncio
from contextlib import closing
from pathlib import Path

from fusionrag_integrations import (
    Answer,
    AnswerSettings,
    Document,
    FusionEngine,
    FusionRAGError,
    IngestReport,
    KVHandle,
    Passage,
    Store,
)
from fusionrag_integrations.demo import MODEL_DIR
from fusionrag_integrations.store.kv.disk_budget import Budgets


def made(store: Path) -> FusionEngine:
    engine = FusionEngine.from_pretrained(
        MODEL_DIR, store=store, device="cpu", kv_format="int8", budgets=Budgets(host=1 << 30)
    )
    documents = [
        Document(id="tia", text="Tia Rundo was born in Pelfield.", metadata={"page": 1}),
        Document(id="town", passages=(Passage("Pelfield lies by the river Oder."),)),
    ]
    report: IngestReport = engine.ingest(documents)
    print(report.documents_changed)
    return engine


def asked(engine: FusionEngine, question: str) -> str:
    hits = engine.store.search(question, 4, scopes=[""])
    handles: list[KVHandle] = [hit.handle for hit in hits]
    engine.prefetch(handles)
    context = "\n\n".join(hit.chunk.text for hit in hits)
    settings = AnswerSettings(ratio=0.3, kv="fused", stop=("\n",), handles=tuple(handles))
    answer: Answer = engine.answer(f"{context}\n\n{question}", settings)
    answer.explain().save("why.html")
    share: float = answer.usage.recompute_ratio
    return f"{answer.text} ({share:.0%}, {answer.ttft.total} ms, {answer.finish_reason})"


def first_words(engine: FusionEngine, prompt: str, count: int) -> list[str]:
    words: list[str] = []
    with closing(engine.stream([{"role": "user", "content": prompt}])) as stream:
        for piece in stream:
            words.append(piece)
            if len(words) == count:
                break
    return words


async def told(engine: FusionEngine, prompt: str) -> Answer:
    stream = engine.stream(prompt)
    async for piece in stream:
        print(piece, end="")
    return stream.answer


def main() -> None:
    engine = made(Path("my-store"))
    print(asked(engine, "Where was Tia Rundo born?"), first_words(engine, "Who?", 2))
    print(asyncio.run(told(engine, "Who plays the cello?")).token_ids)
    print(engine.metrics().disk.records, engine.delete(["tia"]))
    try:
        Store.open("elsewhere")
    except FusionRAGError as error:
        print(error)
