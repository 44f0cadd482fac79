"""FusionRAGLLM: it answers as the engine does, with settings by field and by call."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document as Found

from fusionrag_integrations import Answer, AnswerSettings, Document, FusionEngine, KVHandle
from fusionrag_integrations.errors import InvalidInputError, UnknownSelectorError
from fusionrag_integrations.langchain import ChatFusionRAG, FusionKVRetriever, FusionRAGLLM
from fusionrag_integrations.prompt.messages import Message
from tests.conftest import town

MAX_TOKENS = 12


@pytest.fixture(scope="module")
def documents(engine: FusionEngine) -> list[Found]:
    return FusionKVRetriever(engine=engine, k=3).invoke("Where is house 15 of town number 2?")


@pytest.fixture(scope="module")
def prompt(documents: list[Found]) -> str:
    context = "\n\n".join(document.page_content for document in documents)
    return f"Read this.\n{context}\n\nWhere is house 15?"


@pytest.fixture
def llm(engine: FusionEngine) -> FusionRAGLLM:
    return FusionRAGLLM(engine=engine, max_tokens=MAX_TOKENS)


def usage(llm: FusionRAGLLM, prompt: str, **changes: Any) -> dict[str, Any]:
    info: dict[str, Any] = llm.generate([prompt], **changes).generations[0][0].generation_info
    return info["usage"]


def test_it_answers_as_the_engine_does(
    engine: FusionEngine, llm: FusionRAGLLM, prompt: str
) -> None:
    settings = AnswerSettings(ratio=0.5, selector="random", kv="isolated", max_tokens=MAX_TOKENS)
    expected = engine.answer(prompt, settings)
    [[generation]] = llm.generate([prompt], ratio=0.5, selector="random", kv="isolated").generations
    assert generation.text == expected.text
    told = {name: generation.generation_info[name] for name in ("finish_reason", "usage", "chunks")}
    assert told == {name: expected.report()[name] for name in told}


def test_several_prompts_are_answered_in_order(llm: FusionRAGLLM, prompt: str) -> None:
    other = "Where is the bridge?"
    generations = llm.generate([prompt, other]).generations
    assert [g[0].text for g in generations] == [llm.invoke(prompt), llm.invoke(other)]
    assert [g[0].generation_info["chunks"]["fused"] for g in generations] == [2, 0]
    assert [g[0].generation_info["chunks"]["isolated"] for g in generations] == [1, 0]


def test_generation_info_tells_where_the_time_went(llm: FusionRAGLLM, prompt: str) -> None:
    [[generation]] = llm.generate([prompt]).generations
    spent = generation.generation_info["ttft_ms"]
    assert spent["prefill"] > 0.0
    assert spent["total"] == pytest.approx(sum(v for k, v in spent.items() if k != "total"))


def test_pieces_of_a_stream_join_to_the_answer(llm: FusionRAGLLM, prompt: str) -> None:
    pieces = list(llm.stream(prompt))
    assert len(pieces) > 2
    assert "".join(pieces) == llm.invoke(prompt)


def test_callbacks_get_each_new_token_once(llm: FusionRAGLLM, prompt: str) -> None:
    seen: list[str] = []

    class Watch(BaseCallbackHandler):
        def on_llm_new_token(self, token: str, **_: Any) -> None:
            seen.append(token)

    pieces = list(llm.stream(prompt, config={"callbacks": [Watch()]}))
    assert seen == [piece for piece in pieces if piece]


def test_callbacks_get_the_report_of_a_stream(llm: FusionRAGLLM, prompt: str) -> None:
    ends: list[dict[str, Any]] = []

    class Watch(BaseCallbackHandler):
        def on_llm_end(self, response: Any, **_: Any) -> None:
            ends.append(response.generations[0][0].generation_info)

    list(llm.stream(prompt, config={"callbacks": [Watch()]}))
    assert ends[0]["usage"] == usage(llm, prompt)


def test_fields_are_the_settings_of_every_call(engine: FusionEngine, prompt: str) -> None:
    fields = {"selector": "random", "ratio": 0.5, "kv": "isolated", "max_tokens": 3}
    llm = FusionRAGLLM(engine=engine, **fields)
    [[generation]] = llm.generate([prompt]).generations
    report = engine.answer(prompt, AnswerSettings(**fields)).report()
    assert generation.generation_info["usage"] == report["usage"]
    assert generation.generation_info["chunks"] == {
        "fused": 0,
        "isolated": 3,
        "missed": 0,
        "captured": 0,
    }
    assert report["usage"]["recompute_ratio"] == pytest.approx(0.5, abs=0.01)


def test_a_call_changes_its_own_settings_only(llm: FusionRAGLLM, prompt: str) -> None:
    before = usage(llm, prompt)
    changed = usage(llm, prompt, selector="none", max_tokens=2)
    assert (changed["recomputed_tokens"], changed["completion_tokens"]) == (0, 2)
    assert before["recomputed_tokens"] > 0
    assert usage(llm, prompt) == before


def test_bind_reaches_the_engine(engine: FusionEngine, llm: FusionRAGLLM, prompt: str) -> None:
    expected = engine.answer(
        prompt, AnswerSettings(ratio=0.7, selector="random", max_tokens=MAX_TOKENS)
    )
    assert llm.bind(ratio=0.7, selector="random").invoke(prompt) == expected.text
    with pytest.raises(UnknownSelectorError, match="nonesuch"):
        llm.bind(selector="nonesuch").invoke(prompt)


def test_handles_name_a_chunk_too_short_to_be_found(model_dir: Path, tmp_path: Path) -> None:
    engine = FusionEngine.from_pretrained(model_dir, store=tmp_path)
    engine.ingest([Document(id="short", text="A fox is here.")])
    [found] = FusionKVRetriever(engine=engine).invoke("Where is the fox?")
    llm = FusionRAGLLM(engine=engine, max_tokens=1)
    prompt = f"Read this.\n\n{found.page_content}\n\nWhere is the fox?"
    handle = KVHandle.from_metadata(found.metadata)
    named, unnamed = usage(llm, prompt, handles=[handle]), usage(llm, prompt)
    assert named["reused_tokens"] > 0
    assert unnamed["reused_tokens"] == 0


def test_full_attention_equals_recomputing_everything(llm: FusionRAGLLM, prompt: str) -> None:
    assert llm.invoke(prompt, kv="none") == llm.invoke(prompt, selector="all")
    assert usage(llm, prompt, kv="none")["recomputed_tokens"] == 0
    assert usage(llm, prompt, selector="all")["reused_tokens"] == 0


def test_a_stop_string_ends_the_answer_before_it(llm: FusionRAGLLM, prompt: str) -> None:
    whole = llm.invoke(prompt)
    stop = whole[len(whole) // 2 :][:3]
    expected = whole[: whole.index(stop)]
    assert llm.invoke(prompt, stop=[stop]) == expected
    assert llm.bind(stop=[stop]).invoke(prompt) == expected
    assert "".join(llm.stream(prompt, stop=[stop])) == expected
    assert llm.model_copy(update={"stop": [stop]}).invoke(prompt) == expected


def test_a_calls_stop_takes_the_place_of_the_fields(engine: FusionEngine, prompt: str) -> None:
    whole = FusionRAGLLM(engine=engine, max_tokens=MAX_TOKENS).invoke(prompt)
    llm = FusionRAGLLM(engine=engine, max_tokens=MAX_TOKENS, stop=[whole[:3]])
    assert llm.invoke(prompt) == ""
    assert llm.invoke(prompt, stop=["never said"]) == whole


def test_a_seed_repeats_a_sample(llm: FusionRAGLLM, prompt: str) -> None:
    def sample(seed: int) -> str:
        return llm.invoke(prompt, temperature=1.0, seed=seed)

    assert sample(1) == sample(1) != sample(2)


def test_an_unknown_setting_of_a_call_is_named(llm: FusionRAGLLM, prompt: str) -> None:
    with pytest.raises(InvalidInputError, match=r"takes no 'raito'\. Did you mean 'ratio'"):
        llm.invoke(prompt, raito=0.3)
    with pytest.raises(InvalidInputError, match=r"takes no 'raito'\. Did you mean 'ratio'"):
        list(llm.stream(prompt, raito=0.3))


def test_impossible_values_are_refused(engine: FusionEngine, llm: FusionRAGLLM) -> None:
    with pytest.raises(InvalidInputError, match="ratio is 2"):
        FusionRAGLLM(engine=engine, ratio=2)
    with pytest.raises(InvalidInputError, match="ratio is 2"):
        llm.invoke("Where is it?", ratio=2)


def test_an_empty_prompt_is_refused(llm: FusionRAGLLM) -> None:
    with pytest.raises(InvalidInputError, match="prompt is empty"):
        llm.invoke("")


def test_a_cache_tells_fields_apart(engine: FusionEngine, prompt: str) -> None:
    cache = InMemoryCache()
    one = FusionRAGLLM(engine=engine, max_tokens=2, cache=cache)
    other = FusionRAGLLM(engine=engine, max_tokens=5, cache=cache)
    assert one.invoke(prompt) != other.invoke(prompt)


def test_models_of_one_name_have_identities_of_their_own(
    engine: FusionEngine, model_dir: Path, tmp_path: Path
) -> None:
    half = FusionEngine.from_pretrained(model_dir, store=tmp_path, dtype="bfloat16")
    assert half.model_name == engine.model_name
    assert FusionRAGLLM(engine=half).identity() != FusionRAGLLM(engine=engine).identity()


def test_a_cache_tells_apart_what_the_store_held(model_dir: Path, tmp_path: Path) -> None:
    engines = [FusionEngine.from_pretrained(model_dir, store=tmp_path / name) for name in "ab"]
    first, second = (FusionRAGLLM(engine=engine) for engine in engines)
    assert first.identity() != second.identity()
    before = first.identity()
    engines[0].ingest([town(0)])
    assert first.identity() != before


@pytest.mark.parametrize("kind", [FusionRAGLLM, ChatFusionRAG])
def test_a_cache_tells_apart_where_answers_stop(
    engine: FusionEngine, kind: type[FusionRAGLLM | ChatFusionRAG]
) -> None:
    def text(**given: Any) -> str:
        answer = kind(engine=engine, max_tokens=8, cache=cache, **given).invoke("Where is the fox?")
        return str(getattr(answer, "content", answer))

    cache = InMemoryCache()
    whole = text()
    assert len(whole) > 1
    assert text(stop=[whole[1]]) == whole[: whole.index(whole[1])]
    assert text() == whole


def test_a_deep_copy_shares_the_engine(engine: FusionEngine) -> None:
    model = FusionRAGLLM(engine=engine, max_tokens=2)
    retriever = FusionKVRetriever(engine=engine, k=1)
    again, other = copy.deepcopy(model), copy.deepcopy(retriever)
    assert again.engine is engine
    assert (again.max_tokens, other.k) == (2, 1)
    assert again.invoke("Where is the fox?") == model.invoke("Where is the fox?")
    assert other.invoke("fox") == retriever.invoke("fox")


def test_tokens_are_counted_by_the_models_own_tokenizer(
    engine: FusionEngine, llm: FusionRAGLLM
) -> None:
    text = "The quick brown fox, naïve 日本."
    assert llm.get_num_tokens(text) == len(engine.encode(text)) > 0


class TestRawText:
    """A prompt in the model's chat format is the whole text; `raw` says so of others."""

    @pytest.fixture
    def formatted(self, prompt: str) -> str:
        return f"<|system|>\nBe brief.<|end|>\n<|user|>\n{prompt}<|end|>\n<|assistant|>\n"

    @pytest.fixture
    def expected(self, engine: FusionEngine, prompt: str) -> Answer:
        messages: list[Message] = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": prompt},
        ]
        return engine.answer(messages, AnswerSettings(max_tokens=MAX_TOKENS))

    @pytest.mark.asyncio
    @pytest.mark.parametrize("start", ["", "<s>", "\n"])
    async def test_hand_written_turns_are_not_wrapped(
        self, llm: FusionRAGLLM, formatted: str, expected: Answer, start: str
    ) -> None:
        prompt = start + formatted
        told = usage(llm, prompt)
        assert told["prompt_tokens"] == expected.usage.prompt_tokens - (start == "")
        assert told["reused_tokens"] == expected.usage.reused_tokens > 0
        text = llm.invoke(prompt)
        if start == "<s>":
            assert text == expected.text
        assert "".join(llm.stream(prompt)) == text
        assert await llm.ainvoke(prompt) == text
        assert "".join([piece async for piece in llm.astream(prompt)]) == text

    def test_a_begun_answer_is_continued(
        self, llm: FusionRAGLLM, engine: FusionEngine, formatted: str, prompt: str
    ) -> None:
        messages: list[Message] = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": "The house"},
        ]
        expected = engine.answer(messages, AnswerSettings(max_tokens=MAX_TOKENS))
        assert llm.invoke(f"<s>{formatted}The house") == expected.text
        assert usage(llm, f"<s>{formatted}The house") == expected.report()["usage"]

    def test_raw_says_what_a_string_is(
        self, engine: FusionEngine, llm: FusionRAGLLM, formatted: str, prompt: str
    ) -> None:
        def seen(text: str, raw: bool | None) -> str:
            settings = AnswerSettings(max_tokens=1, raw=raw)
            return engine.answer(text, settings).trace.text

        assert seen(prompt, None) == f"<s><|user|>\n{prompt}<|end|>\n<|assistant|>\n"
        assert seen(prompt, True) == prompt
        assert seen(formatted, False) == f"<s><|user|>\n{formatted.strip()}<|end|>\n<|assistant|>\n"
        for raw in (True, False):
            expected = usage(llm, prompt, raw=raw)
            assert (
                usage(FusionRAGLLM(engine=engine, max_tokens=MAX_TOKENS, raw=raw), prompt)
                == expected
            )
        assert usage(llm, prompt, raw=True)["prompt_tokens"] < usage(llm, prompt)["prompt_tokens"]
        assert usage(llm, prompt, raw=True)["reused_tokens"] > 0

    def test_raw_is_true_false_or_none(self, llm: FusionRAGLLM, engine: FusionEngine) -> None:
        with pytest.raises(InvalidInputError, match="raw is 'yes'"):
            llm.invoke("Who?", raw="yes")
        with pytest.raises(InvalidInputError, match="raw"):
            FusionRAGLLM(engine=engine, raw="perhaps")
