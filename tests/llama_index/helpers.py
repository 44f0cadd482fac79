"""What the tests share: an embedding without a model, nodes, and a record of the model's calls."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.schema import (
    BaseNode,
    NodeRelationship,
    NodeWithScore,
    QueryBundle,
    RelatedNodeInfo,
    TextNode,
)
from pydantic import PrivateAttr

from fusionrag_integrations import Answer, FusionEngine
from fusionrag_integrations.serving.request import Request
from tests.steps import note_answers

QUESTION = "Where is house 15 of town number 2?"
MAX_TOKENS = 8


class Noting(BaseEventHandler):
    """Keeps the events of LlamaIndex's instrumentation."""

    _events: list[Any] = PrivateAttr(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        return "Noting"

    def handle(self, event: Any, **kwargs: Any) -> None:
        self._events.append(event)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self._events if isinstance(event, kind)]


class FixedRetriever(BaseRetriever):
    """Finds what it was given, whatever the question."""

    def __init__(self, found: Sequence[NodeWithScore]) -> None:
        super().__init__()
        self._found = list(found)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return self._found


def paragraph(town: int, part: int) -> str:
    return (
        f"Town number {town} has a paragraph {part} which tells of the river, the old bridge, "
        f"house {town * 7 + part}, and of a fox that jumps over the lazy dog near the bank."
    )


def town_nodes(towns: range = range(3), chunks: int = 2, paragraphs: int = 1) -> list[BaseNode]:
    """Nodes of some towns, `chunks` of each, with so many paragraphs in each node."""
    return [
        TextNode(
            id_=f"town-{town}-{chunk}",
            text="\n\n".join(
                paragraph(town, chunk * paragraphs + part) for part in range(paragraphs)
            ),
            relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=f"town-{town}")},
        )
        for town in towns
        for chunk in range(chunks)
    ]


@dataclass(frozen=True)
class Call:
    """One prompt that the model got, and its answer."""

    prompt: Any
    answer: Answer

    @property
    def text(self) -> str:
        """All that the prompt says."""
        if isinstance(self.prompt, str):
            return self.prompt
        return "\n".join(message["content"] for message in self.prompt)

    @property
    def found_tokens(self) -> int:
        """Tokens of chunks that were found in the prompt."""
        return self.answer.usage.found_tokens


@contextmanager
def recorded(engine: FusionEngine) -> Iterator[list[Call]]:
    """The calls of an engine's model that end within the block, in the order of their ends."""
    calls: list[Call] = []
    note_answers(engine, lambda request, answer: calls.append(Call(request.prompt, answer)))
    try:
        yield calls
    finally:
        del engine.pipeline.request  # type: ignore[method-assign]


@contextmanager
def ticking_at_every_step(
    engine: FusionEngine, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[Request]]:
    """Every token waits until the event loop has run; yields the requests that had one."""
    ticked = threading.Event()
    steps: list[Request] = []
    decode = engine.pipeline.decode

    def decode_and_wait(request: Request, logits: torch.Tensor) -> None:
        ticked.clear()
        assert ticked.wait(timeout=10), "the event loop stood still"
        steps.append(request)
        decode(request, logits)

    async def tick() -> None:
        while True:
            ticked.set()
            await asyncio.sleep(0.001)

    ticking = asyncio.get_running_loop().create_task(tick())
    monkeypatch.setattr(engine.pipeline, "decode", decode_and_wait)
    try:
        yield steps
    finally:
        monkeypatch.undo()
        ticking.cancel()


def found_share(engine: FusionEngine, calls: Sequence[Call], texts: Sequence[str]) -> float:
    """The share of these texts' tokens that the model found, each put before it once."""
    tokens = sum(len(engine.encode(text)) for text in texts)
    return sum(call.found_tokens for call in calls) / tokens
