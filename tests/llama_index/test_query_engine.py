"""Query engines in all response modes, asked in every way: chunks are found, answers agree."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from llama_index.core import Settings
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.schema import NodeWithScore, TextNode

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.llama_index import FusionKVRetriever, FusionRAGLLM
from tests.llama_index.helpers import (
    MAX_TOKENS,
    QUESTION,
    Call,
    found_share,
    recorded,
    ticking_at_every_step,
)
from tests.llama_index.modes import KINDS, MODES, shares

ACCUMULATING = ("accumulate", "compact_accumulate")
STREAMING = [mode for mode in MODES if mode not in ACCUMULATING]
CALLS = {"refine": 4, "accumulate": 4}  # one for each chunk; the other modes need one in all


def query_engine(engine: FusionEngine, kind: str, mode: str, **arguments: Any) -> Any:
    """As users make them: nothing but a retriever, a model and a response mode."""
    return RetrieverQueryEngine.from_args(
        retriever=FusionKVRetriever(engine=engine, scopes=[kind], similarity_top_k=4),
        llm=FusionRAGLLM(engine=engine, max_tokens=MAX_TOKENS),
        response_mode=mode,  # type: ignore[arg-type]
        **arguments,
    )


async def queried(engine: FusionEngine, kind: str, mode: str, way: str) -> tuple[str, Any]:
    if way == "query":
        response = query_engine(engine, kind, mode).query(QUESTION)
        return str(response), response
    if way == "aquery":
        response = await query_engine(engine, kind, mode).aquery(QUESTION)
        return str(response), response
    streaming = query_engine(engine, kind, mode, streaming=True)
    if way == "query, streaming":
        response = streaming.query(QUESTION)
        pieces = list(response.response_gen)
    else:
        response = await streaming.aquery(QUESTION)
        pieces = [piece async for piece in response.async_response_gen()]
    text = "".join(pieces)
    # Half a character waits for its other half: an answer of two may come at once.
    assert len([piece for piece in pieces if piece]) > 1 or len(text) <= 2
    return text, response


def sources(response: Any) -> list[str]:
    return [node.text for node in response.source_nodes]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_answers_from_the_chunks_that_it_retrieved(
    kinds_engine: FusionEngine, mode: str, kind: str
) -> None:
    asked = query_engine(kinds_engine, kind, mode)
    with recorded(kinds_engine) as calls:
        response = asked.query(QUESTION)
    assert len(calls) == CALLS.get(mode, 1)
    assert response.source_nodes == asked.retriever.retrieve(QUESTION)
    assert len(sources(response)) == 4
    assert calls[-1].answer.text in str(response)
    assert found_share(kinds_engine, calls, sources(response)) <= 1.0
    if (mode, kind) != ("simple_summarize", "several paragraphs"):
        assert found_share(kinds_engine, calls, sources(response)) >= 0.95


@pytest.mark.parametrize("mode", STREAMING)
@pytest.mark.parametrize("way", ["query, streaming", "aquery", "aquery, streaming"])
@pytest.mark.asyncio
async def test_every_way_of_asking_gives_the_same_answer(
    kinds_engine: FusionEngine, mode: str, way: str
) -> None:
    text, _ = await queried(kinds_engine, "one paragraph", mode, "query")
    with recorded(kinds_engine) as calls:
        again, response = await queried(kinds_engine, "one paragraph", mode, way)
    assert again == text
    assert found_share(kinds_engine, calls, sources(response)) >= 0.95


@pytest.mark.parametrize("mode", ACCUMULATING)
@pytest.mark.asyncio
async def test_accumulating_modes_answer_asynchronously_and_do_not_stream(
    kinds_engine: FusionEngine, mode: str
) -> None:
    text, _ = await queried(kinds_engine, "one paragraph", mode, "query")
    again, _ = await queried(kinds_engine, "one paragraph", mode, "aquery")
    assert again == text
    with pytest.raises(ValueError, match="Unable to stream"):
        query_engine(kinds_engine, "one paragraph", mode, streaming=True).query(QUESTION)


@pytest.mark.parametrize(("mode", "texts"), [("no_text", 0), ("context_only", 4)])
def test_modes_without_an_answer_ask_no_model(
    kinds_engine: FusionEngine, monkeypatch: pytest.MonkeyPatch, mode: str, texts: int
) -> None:
    # They want one all the same, and would look for OpenAI's.
    monkeypatch.setattr(Settings, "_llm", FusionRAGLLM(engine=kinds_engine))
    with recorded(kinds_engine) as calls:
        response = query_engine(kinds_engine, "one paragraph", mode).query(QUESTION)
    assert calls == []
    assert sum(text in str(response) for text in sources(response)) == texts


@pytest.mark.asyncio
async def test_questions_at_the_same_time_get_the_answers_that_they_get_alone(
    kinds_engine: FusionEngine,
) -> None:
    asked = query_engine(kinds_engine, "one paragraph", "compact")
    questions = [f"Where is house {number}?" for number in (0, 1, 8, 14, 15)]
    alone = [str(asked.query(question)) for question in questions]
    together = await asyncio.gather(*(asked.aquery(question) for question in questions))
    assert [str(response) for response in together] == alone
    assert len(set(alone)) > 1


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.asyncio
async def test_the_event_loop_goes_on_while_the_model_works(
    kinds_engine: FusionEngine, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    asked = query_engine(kinds_engine, "one paragraph", "compact", streaming=streaming)
    with ticking_at_every_step(kinds_engine, monkeypatch) as steps:
        response = await asked.aquery(QUESTION)
        if streaming:
            async for _ in response.async_response_gen():
                pass
    assert len(steps) > 2


def test_the_measured_shares_name_every_mode_and_kind(empty_engine: FusionEngine) -> None:
    measured = {(mode, kind): share for mode, kind, share in shares(empty_engine)}
    assert list(measured) == [(mode, kind) for mode in MODES for kind in KINDS]
    assert measured.pop(("simple_summarize", "several paragraphs")) == pytest.approx(
        1 / 3, abs=0.02
    )
    assert min(measured.values()) >= 0.95


@pytest.mark.parametrize(
    ("original", "worded"),
    [
        ("\n\n", r"\n\n"),
        ("\n", r"\n"),
        ("\t", r"\t"),
        (" \\ ", r" \\ "),
        ("""; "x" isn't; """, """; "x" isn\\'t; """),
    ],
    ids=["paragraphs", "lines", "tabs", "backslashes", "mixed quotes"],
)
def test_simple_summarize_escapes_the_text_and_the_part_before_that_is_found(
    empty_engine: FusionEngine, original: str, worded: str
) -> None:
    parts = [f"This is part {i} of a long story of the river, the town and a fox." for i in (1, 2)]
    node = TextNode(text=original.join(parts))
    found = FusionKVRetriever.from_nodes([node], engine=empty_engine).retrieve("part")
    calls = _synthesized(empty_engine, "simple_summarize", found)
    assert worded.join(parts) in calls[0].text
    assert original.join(parts) not in calls[0].text
    assert 0.4 < found_share(empty_engine, calls, [node.text]) < 0.6
    assert (
        found_share(empty_engine, _synthesized(empty_engine, "compact", found), [node.text]) >= 0.95
    )


def _synthesized(engine: FusionEngine, mode: str, nodes: list[NodeWithScore]) -> list[Call]:
    llm = FusionRAGLLM(engine=engine, max_tokens=MAX_TOKENS)
    with recorded(engine) as calls:
        get_response_synthesizer(llm=llm, response_mode=mode).synthesize(QUESTION, nodes)  # type: ignore[arg-type]
    return calls
