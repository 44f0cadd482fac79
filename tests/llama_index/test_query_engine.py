"""The query engines that people have, over our retriever and model."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core.callbacks import CallbackManager, EventPayload, LlamaDebugHandler
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import NodeWithScore

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.llama_index import FusionKVRetriever, FusionRAGLLM

QUESTION = "Where is house 15 of town number 2?"


class Watched:
    """A query engine with default settings, and what its model was last asked and answered."""

    def __init__(self, engine: FusionEngine, **arguments: Any) -> None:
        self.engine = engine
        self.retriever = FusionKVRetriever(engine=engine, similarity_top_k=3)
        llm = FusionRAGLLM(engine=engine, max_tokens=12)
        self.query_engine = RetrieverQueryEngine.from_args(
            retriever=self.retriever, llm=llm, **arguments
        )
        self._handler = LlamaDebugHandler(print_trace_on_end=False)
        # Only now: making a query engine gives its model the global manager.
        llm.callback_manager = CallbackManager([self._handler])

    def query(self) -> Any:
        return self.query_engine.query(QUESTION)

    def model_responses(self) -> list[Any]:
        ends = [end.payload for _, end in self._handler.get_llm_inputs_outputs()]
        return [end.get(EventPayload.RESPONSE) or end[EventPayload.COMPLETION] for end in ends]

    def found_share(self, nodes: list[NodeWithScore]) -> float:
        """The share of the retrieved chunks' tokens that the model found in its prompts."""
        records = self.engine.corpus.catalog.records([node.node_id for node in nodes])
        assert len(records) == 3
        tokens = sum(len(record.encoded.token_ids) for record in records.values())
        usages = [response.raw["usage"] for response in self.model_responses()]
        found = sum(usage["reused_tokens"] + usage["recomputed_tokens"] for usage in usages)
        return float(found) / tokens


@pytest.fixture(params=["engine", "plain_engine"], ids=["chat", "completion"])
def any_engine(request: pytest.FixtureRequest) -> FusionEngine:
    """A model with a chat template, which is asked by messages, and one without."""
    engine: FusionEngine = request.getfixturevalue(request.param)
    return engine


def test_it_answers_with_its_sources(engine: FusionEngine) -> None:
    watched = Watched(engine)
    response = watched.query()
    [from_model] = watched.model_responses()
    assert str(response) == from_model.message.content != ""
    assert response.source_nodes == watched.retriever.retrieve(QUESTION)


def test_nearly_all_retrieved_tokens_are_found(any_engine: FusionEngine) -> None:
    watched = Watched(any_engine)
    response = watched.query()
    assert 0.95 <= watched.found_share(response.source_nodes) <= 1.0
    usage = watched.model_responses()[0].raw["usage"]
    assert usage["reused_tokens"] > usage["recomputed_tokens"] > 0


def test_it_streams_the_same_answer(any_engine: FusionEngine) -> None:
    watched = Watched(any_engine, streaming=True)
    response = watched.query()
    pieces = [piece for piece in response.response_gen if piece]
    assert len(pieces) > 1
    assert "".join(pieces) == str(Watched(any_engine).query())
    assert watched.found_share(response.source_nodes) >= 0.95


@pytest.mark.asyncio
async def test_it_answers_asynchronously(any_engine: FusionEngine) -> None:
    watched = Watched(any_engine)
    response = await watched.query_engine.aquery(QUESTION)
    assert watched.found_share(response.source_nodes) >= 0.95
    assert str(response) == str(Watched(any_engine).query())


@pytest.mark.parametrize("mode", ["refine", "tree_summarize", "simple_summarize"])
def test_other_response_modes_find_the_tokens_too(engine: FusionEngine, mode: str) -> None:
    watched = Watched(engine, response_mode=mode)
    response = watched.query()
    assert watched.found_share(response.source_nodes) >= 0.95
