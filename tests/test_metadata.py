"""What loaders put into metadata is kept, and comes back as strings, numbers and booleans."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, time
from decimal import Decimal
from enum import Enum, IntEnum
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from langchain_core.documents import Document as LangChainDocument
from llama_index.core.schema import TextNode

import fusionrag_integrations.langchain as lc
import fusionrag_integrations.llama_index as li
from fusionrag_integrations import Document, FusionEngine, Passage


class Kind(Enum):
    REPORT = "report"


class Level(IntEnum):
    HIGH = 3


GIVEN: dict[str, Any] = {
    "path": Path("a/b.pdf"),
    "pure": PurePosixPath("c"),
    "when": datetime(2024, 5, 6, 7, 8, tzinfo=UTC),
    "day": date(2024, 5, 6),
    "hour": time(7, 8),
    "id": UUID(int=5),
    "price": Decimal("12.5"),
    "kind": Kind.REPORT,
    "level": Level.HIGH,
    "count": np.int64(4),
    "share": np.float32(0.5),
    "open": np.bool_(True),
    "plain": "text",
    "yes": True,
}
KEPT = {
    "path": "a/b.pdf",
    "pure": "c",
    "when": "2024-05-06T07:08:00+00:00",
    "day": "2024-05-06",
    "hour": "07:08:00",
    "id": "00000000-0000-0000-0000-000000000005",
    "price": 12.5,
    "kind": "report",
    "level": 3,
    "count": 4,
    "share": 0.5,
    "open": True,
    "plain": "text",
    "yes": True,
}
TEXT = "The fox lives by the river."
WAYS: dict[str, Callable[[FusionEngine], Any]] = {
    "document": lambda e: e.ingest([Document("d", TEXT, metadata=GIVEN)]),
    "passage": lambda e: e.ingest([Document("d", passages=(Passage(TEXT, GIVEN),))]),
    "langchain": lambda e: lc.FusionKVRetriever.from_documents(
        [LangChainDocument(TEXT, metadata=GIVEN)], engine=e
    ),
    "llama_index": lambda e: li.FusionKVRetriever.from_nodes(
        [TextNode(text=TEXT, metadata=GIVEN)], engine=e
    ),
}


@pytest.mark.parametrize("ingest", WAYS.values(), ids=WAYS.keys())
def test_entries_of_many_kinds(engine: FusionEngine, ingest: Callable[[FusionEngine], Any]) -> None:
    ingest(engine)
    [hit] = engine.store.search("Where is the fox?", 5, where={"price": {"$gt": 12}})
    found = {name: hit.chunk.metadata[name] for name in KEPT}
    assert found == KEPT
    assert [type(value) for value in found.values()] == [type(value) for value in KEPT.values()]


def test_empty_pages_are_passed_over_and_logged(
    engine: FusionEngine, caplog: pytest.LogCaptureFixture
) -> None:
    from llama_index.core.schema import Document as LlamaDocument

    pages = ["", TEXT, " \n\t", "A bear lives in the town."]
    documents = [LangChainDocument(page, metadata={"source": "lc.pdf"}) for page in pages]
    lc.FusionKVRetriever.from_documents(documents, engine=engine)
    nodes = [LlamaDocument(text=page, doc_id=f"page-{i}") for i, page in enumerate(pages)]
    li.FusionKVRetriever.from_nodes(nodes, engine=engine)
    more = [TextNode(text=page, id_=f"node-{i}") for i, page in enumerate(pages)]
    assert len(li.FusionKVTransform(engine=engine)(more)) == len(pages)
    assert engine.store.catalog.counts().chunks == 6
    assert caplog.text.count("2 passages without text are passed over") == 3


def test_a_page_that_became_empty_takes_its_chunk_along(engine: FusionEngine) -> None:
    for text, chunks in ((TEXT, 1), (" ", 0)):
        lc.FusionKVRetriever.from_documents(
            [LangChainDocument(text, metadata={"source": "a.pdf"})], engine=engine
        )
        assert engine.store.catalog.counts().chunks == chunks
