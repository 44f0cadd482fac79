"""The chains that people have: retriever, prompt template and model, joined by LCEL."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.runnables import Runnable, RunnablePassthrough

from fusionrag_integrations import AnswerSettings, FusionEngine
from fusionrag_integrations.langchain import ChatFusionRAG, FusionKVRetriever, FusionRAGLLM

QUESTION = "Where is house 15 of town number 2?"
QUESTIONS = [QUESTION, "Which town has house 7?"]
WORDS = "Use this context:\n{context}\n\nQuestion: {question}\nAnswer:"

Chain = Runnable[str, str]


def join(documents: list[Document]) -> str:
    return "\n\n".join(document.page_content for document in documents)


@pytest.fixture
def retriever(engine: FusionEngine) -> FusionKVRetriever:
    return FusionKVRetriever(engine=engine, k=4)


@pytest.fixture(params=["llm", "chat"])
def chain(
    request: pytest.FixtureRequest, engine: FusionEngine, retriever: FusionKVRetriever
) -> Chain:
    """Question -> answer, by the string model and by the chat model."""
    if request.param == "llm":
        prompt = PromptTemplate.from_template(WORDS)
        llm = FusionRAGLLM(engine=engine, max_tokens=12)
    else:
        prompt = ChatPromptTemplate.from_messages([("human", WORDS)])
        llm = ChatFusionRAG(engine=engine, max_tokens=12)
    return (
        {"context": retriever | join, "question": RunnablePassthrough()}
        | prompt
        | llm
        | StrOutputParser()
    )


class Watch(BaseCallbackHandler):
    """Keeps the usage that the model tells of its last answer."""

    usage: dict[str, Any]

    def on_llm_end(self, response: LLMResult, **_: Any) -> None:
        [[generation]] = response.generations
        if isinstance(generation, ChatGeneration):
            self.usage = generation.message.response_metadata["usage"]
        else:
            self.usage = (generation.generation_info or {})["usage"]


def test_the_prompt_reaches_the_engine_as_it_is(
    engine: FusionEngine, retriever: FusionKVRetriever, chain: Chain
) -> None:
    prompt = WORDS.format(context=join(retriever.invoke(QUESTION)), question=QUESTION)
    expected = engine.answer(prompt, AnswerSettings(max_tokens=12))
    assert chain.invoke(QUESTION) == expected.text


@pytest.mark.parametrize("streamed", [False, True])
def test_nearly_all_retrieved_tokens_are_found(
    engine: FusionEngine, retriever: FusionKVRetriever, chain: Chain, streamed: bool
) -> None:
    watch = Watch()
    if streamed:
        list(chain.stream(QUESTION, config={"callbacks": [watch]}))
    else:
        chain.invoke(QUESTION, config={"callbacks": [watch]})
    ids = [str(document.id) for document in retriever.invoke(QUESTION)]
    records = engine.store.catalog.chunks.records(ids).values()
    retrieved = sum(len(record.encoded.token_ids) for record in records)
    found = watch.usage["reused_tokens"] + watch.usage["recomputed_tokens"]
    assert len(records) == 4
    assert 0.95 * retrieved <= found <= retrieved
    assert watch.usage["reused_tokens"] > watch.usage["recomputed_tokens"] > 0


def test_streamed_pieces_join_to_the_answer(chain: Chain) -> None:
    pieces = [piece for piece in chain.stream(QUESTION) if piece]
    assert len(pieces) > 1
    assert "".join(pieces) == chain.invoke(QUESTION)


def test_a_batch_answers_each_question(chain: Chain) -> None:
    answers = chain.batch(QUESTIONS)
    assert answers == [chain.invoke(question) for question in QUESTIONS]
    assert answers[0] != answers[1]


@pytest.mark.asyncio
async def test_asynchronous_calls_give_the_same(chain: Chain) -> None:
    expected = chain.invoke(QUESTION)
    assert await chain.ainvoke(QUESTION) == expected
    assert "".join([piece async for piece in chain.astream(QUESTION)]) == expected
    assert (await chain.abatch(QUESTIONS))[0] == expected
