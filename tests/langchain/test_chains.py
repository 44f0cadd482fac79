"""Every chain finds the chunks in its prompts, whatever stands around them."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from langchain_core.runnables import RunnableConfig

from fusionrag_integrations import Document, FusionEngine
from fusionrag_integrations.langchain import ChatFusionRAG, FusionKVRetriever, FusionRAGLLM
from fusionrag_integrations.store.kv.record_files import RecordFile
from fusionrag_integrations.store.kv.tiered_kv import TieredKV
from tests.langchain.chains import CHAINS, WORDS, Build, Watch, found_share, join

QUESTION = "Where is house 15 of town number 2?"
QUESTIONS = [QUESTION, "Which town has house 7?", "Where is the fox?", "What is near the bank?"]
ODD = """\
In the log of <b>Tom & "Jerry's"</b> the first line says {x} and {{y}}, and $z costs 5 &amp; 6.
\tIt goes on,   with spaces,\r\nwith lines, non\u00a0breaking, zero\u200bwidth, and cafe\u0301s,
and 東京の古い橋は川の近くにあります。 And then 👩‍👩‍👧 and 🇫🇷 and \\n and {{{context}}}, all it."""
ESCAPED = "LCEL, mustache template `{{context}}`"


@pytest.fixture
def retriever(engine: FusionEngine) -> FusionKVRetriever:
    return FusionKVRetriever(engine=engine, k=4)


@pytest.fixture(scope="module")
def odd(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> FusionEngine:
    """A document whose chunks hold what templates and escapes trip over."""
    store = tmp_path_factory.mktemp("odd") / "store"
    engine = FusionEngine.from_pretrained(model_dir, store=store)
    engine.ingest([Document("odd", ODD, title="Odd {title}"), Document("after", ODD[::-1])])
    return engine


@pytest.mark.parametrize("build", CHAINS.values(), ids=CHAINS.keys())
def test_nearly_all_retrieved_tokens_are_found(
    engine: FusionEngine, retriever: FusionKVRetriever, build: Build
) -> None:
    assert 0.95 <= found_share(engine, retriever, build, QUESTION) <= 1.001


@pytest.mark.parametrize("name", [name for name in CHAINS if name != ESCAPED])
def test_odd_texts_are_found_as_well(odd: FusionEngine, name: str) -> None:
    retriever = FusionKVRetriever(engine=odd, k=1)
    [document] = retriever.invoke("log of Tom")
    assert document.page_content == ODD
    assert found_share(odd, retriever, CHAINS[name], "log of Tom") >= 0.95


def test_a_text_that_a_template_escapes_is_found_up_to_there(odd: FusionEngine) -> None:
    retriever = FusionKVRetriever(engine=odd, k=1)
    assert found_share(odd, retriever, CHAINS[ESCAPED], "log of Tom") < 0.1


class TestConcurrentCalls:
    """They give what single calls give, and share what they read."""

    @pytest.fixture(params=["LCEL, f-string template", "RetrievalQA, stuff"])
    def chain(
        self, engine: FusionEngine, retriever: FusionKVRetriever, request: pytest.FixtureRequest
    ) -> Any:
        return CHAINS[request.param](engine, retriever)

    def test_a_batch(self, chain: Any) -> None:
        expected = [chain.invoke(question) for question in QUESTIONS]
        assert len(set(expected)) > 1
        assert chain.batch(QUESTIONS * 2, RunnableConfig(max_concurrency=4)) == expected * 2

    @pytest.mark.asyncio
    async def test_an_asynchronous_batch_and_streams(self, chain: Any) -> None:
        async def streamed(question: str) -> str:
            return "".join([piece async for piece in chain.astream(question)])

        expected = [chain.invoke(question) for question in QUESTIONS]
        assert await chain.abatch(QUESTIONS) == expected
        assert await asyncio.gather(*map(streamed, QUESTIONS)) == expected
        assert await asyncio.gather(*map(chain.ainvoke, QUESTIONS)) == expected

    def test_one_read_serves_all_that_wait_for_it(
        self,
        engine: FusionEngine,
        retriever: FusionKVRetriever,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        reads: list[str] = []
        read_all = RecordFile.read_all

        def slow(file: RecordFile, data: memoryview) -> None:
            reads.append(file.header.key)
            time.sleep(0.05)  # long enough that all four ask before the first has it
            read_all(file, data)

        cold = FusionEngine.open(engine.model, engine.store.path)
        found = FusionKVRetriever(engine=cold, k=retriever.k)
        chain = CHAINS["LCEL, f-string template"](cold, found)
        monkeypatch.setattr(RecordFile, "read_all", slow)
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(chain.invoke, [QUESTION] * 4))
        assert len(reads) == len(set(reads)) == 5  # the first chunk's isolated KV is read, too


@pytest.mark.asyncio
@pytest.mark.parametrize("model", [FusionRAGLLM, ChatFusionRAG])
async def test_asynchronous_calls_leave_the_event_loop_free(
    engine: FusionEngine, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: set[int] = set()
    acquire = TieredKV.acquire

    def watched(kv: TieredKV, key: str, stored: bool = False) -> Any:
        threads.add(threading.get_ident())
        return acquire(kv, key, stored)

    monkeypatch.setattr(TieredKV, "acquire", watched)
    llm = model(engine=engine, max_tokens=4)
    context = join(FusionKVRetriever(engine=engine, k=2).invoke(QUESTION))
    prompt = WORDS.format(context=context, question=QUESTION)
    await llm.ainvoke(prompt)
    assert [piece async for piece in llm.astream(prompt)]
    assert threads
    assert threading.get_ident() not in threads


@pytest.mark.parametrize("model", [FusionRAGLLM, ChatFusionRAG])
class TestEachCall:
    @pytest.fixture
    def prompt(self, retriever: FusionKVRetriever) -> str:
        return WORDS.format(context=join(retriever.invoke(QUESTION)), question=QUESTION)

    def usage(self, llm: Any, prompt: str, **settings: Any) -> dict[str, int]:
        watch = Watch()
        llm.bind(**settings).invoke(prompt, config={"callbacks": [watch]})
        [report] = watch.reports
        usage: dict[str, int] = report["usage"]
        return usage

    def test_chooses_its_ratio_and_selector(
        self, engine: FusionEngine, model: Any, prompt: str
    ) -> None:
        llm = model(engine=engine, max_tokens=2)
        found = self.usage(llm, prompt)["reused_tokens"]
        assert self.usage(llm, prompt, ratio=0.5)["reused_tokens"] < 0.7 * found
        assert self.usage(llm, prompt, selector="none")["recomputed_tokens"] == 0
        assert self.usage(llm, prompt, selector="all")["reused_tokens"] == 0
        assert self.usage(llm, prompt, kv="none")["fresh_tokens"] > found

    def test_stops_at_a_string_that_no_token_border_divides(
        self, engine: FusionEngine, model: Any, prompt: str
    ) -> None:
        llm = model(engine=engine, max_tokens=40)
        text = str(getattr(llm.invoke(prompt), "text", None) or llm.invoke(prompt))
        ids = engine.encode(text)
        assert len(ids) > 6
        stop = text[3:6]
        expected = text[: text.index(stop)]
        for given in (llm.bind(stop=[stop]), model(engine=engine, max_tokens=40, stop=[stop])):
            answer = given.invoke(prompt)
            assert str(getattr(answer, "text", answer)) == expected
            pieces = [str(getattr(p, "text", p)) for p in given.stream(prompt)]
            assert "".join(pieces) == expected


def test_usage_of_the_chat_model_counts_what_was_read_from_the_cache(
    engine: FusionEngine, retriever: FusionKVRetriever
) -> None:
    prompt = WORDS.format(context=join(retriever.invoke(QUESTION)), question=QUESTION)
    chat = ChatFusionRAG(engine=engine, max_tokens=4)
    message = chat.invoke(prompt)
    streamed = sum(chat.stream(prompt), start=type(next(iter(chat.stream(prompt))))(content=""))
    for answer in (message, streamed):
        usage = answer.usage_metadata
        assert usage is not None
        reused = message.response_metadata["usage"]["reused_tokens"]
        assert usage["input_token_details"]["cache_read"] == reused > 0
        assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
