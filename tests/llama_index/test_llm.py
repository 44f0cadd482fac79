"""FusionRAGLLM: its eight methods agree with the engine, report, and keep the loop free."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from llama_index.core.base.llms.types import (
    ChatMessage,
    ImageBlock,
    MessageRole,
    TextBlock,
)
from llama_index.core.callbacks import CallbackManager, LlamaDebugHandler
from llama_index.core.prompts import PromptTemplate

from fusionrag_integrations import Answer, AnswerSettings, FusionEngine, KVHandle
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.llama_index import FusionKVRetriever, FusionRAGLLM
from fusionrag_integrations.llama_index.llm import to_messages

SETTINGS = AnswerSettings(max_tokens=12)
QUESTION = "Where is house 15 of town number 2?"


@pytest.fixture(scope="module")
def prompt(engine: FusionEngine) -> str:
    nodes = FusionKVRetriever(engine=engine, similarity_top_k=3).retrieve(QUESTION)
    context = "\n\n".join(node.text for node in nodes)
    return f"Read this.\n{context}\n\n{QUESTION}"


@pytest.fixture(scope="module")
def messages(prompt: str) -> list[ChatMessage]:
    return [
        ChatMessage(role="system", content="Be brief."),
        ChatMessage(role="user", content="Which towns are there?"),
        ChatMessage(role="assistant", content="Town number 2."),
        ChatMessage(role="user", content=prompt),
    ]


@pytest.fixture(scope="module")
def completion(engine: FusionEngine, prompt: str) -> Answer:
    """What the engine answers to the prompt."""
    return engine.answer(prompt, SETTINGS)


@pytest.fixture(scope="module")
def reply(engine: FusionEngine, messages: list[ChatMessage]) -> Answer:
    """What the engine answers to the messages."""
    return engine.answer(
        [{"role": message.role.value, "content": message.content or ""} for message in messages],
        SETTINGS,
    )


@pytest.fixture
def llm(engine: FusionEngine) -> FusionRAGLLM:
    return FusionRAGLLM(engine=engine, max_tokens=12)


def check_raw(raw: Any, answer: Answer) -> None:
    report = answer.report()
    assert {name: raw[name] for name in report if name != "ttft_ms"} == {
        name: report[name] for name in report if name != "ttft_ms"
    }
    assert raw["usage"]["reused_tokens"] > 0
    assert raw["ttft_ms"]["total"] > 0.0


def check_stream(responses: list[Any], texts: list[str], answer: Answer) -> None:
    """Each response holds the text so far and what is new; the last one holds the report."""
    deltas = [response.delta for response in responses]
    assert len(deltas) > 2
    assert texts == ["".join(deltas[: i + 1]) for i in range(len(deltas))]
    assert texts[-1] == answer.text
    assert [response.raw for response in responses[:-1]] == [None] * (len(responses) - 1)
    check_raw(responses[-1].raw, answer)


def test_complete(llm: FusionRAGLLM, prompt: str, completion: Answer) -> None:
    response = llm.complete(prompt)
    assert response.text == completion.text
    check_raw(response.raw, completion)


def test_stream_complete(llm: FusionRAGLLM, prompt: str, completion: Answer) -> None:
    responses = list(llm.stream_complete(prompt))
    check_stream(responses, [response.text for response in responses], completion)


def test_chat(llm: FusionRAGLLM, messages: list[ChatMessage], reply: Answer) -> None:
    response = llm.chat(messages)
    assert response.message.role == MessageRole.ASSISTANT
    assert response.message.content == reply.text
    check_raw(response.raw, reply)


def test_stream_chat(llm: FusionRAGLLM, messages: list[ChatMessage], reply: Answer) -> None:
    responses = list(llm.stream_chat(messages))
    check_stream(responses, [response.message.content or "" for response in responses], reply)
    assert {response.message.role for response in responses} == {MessageRole.ASSISTANT}


@pytest.mark.asyncio
async def test_asynchronous_completions(llm: FusionRAGLLM, prompt: str, completion: Answer) -> None:
    response = await llm.acomplete(prompt)
    assert response.text == completion.text
    check_raw(response.raw, completion)
    responses = [response async for response in await llm.astream_complete(prompt)]
    check_stream(responses, [response.text for response in responses], completion)


@pytest.mark.asyncio
async def test_asynchronous_chats(
    llm: FusionRAGLLM, messages: list[ChatMessage], reply: Answer
) -> None:
    response = await llm.achat(messages)
    assert response.message.content == reply.text
    check_raw(response.raw, reply)
    responses = [response async for response in await llm.astream_chat(messages)]
    check_stream(responses, [response.message.content or "" for response in responses], reply)


async def _acomplete(llm: FusionRAGLLM) -> None:
    await llm.acomplete(QUESTION)


async def _astream_complete(llm: FusionRAGLLM) -> None:
    async for _ in await llm.astream_complete(QUESTION):
        pass


async def _achat(llm: FusionRAGLLM) -> None:
    await llm.achat([ChatMessage(content=QUESTION)])


async def _astream_chat(llm: FusionRAGLLM) -> None:
    async for _ in await llm.astream_chat([ChatMessage(content=QUESTION)]):
        pass


every_asynchronous_method = pytest.mark.parametrize(
    "call", [_acomplete, _astream_complete, _achat, _astream_chat]
)


@every_asynchronous_method
@pytest.mark.asyncio
async def test_asynchronous_methods_leave_the_event_loop_free(
    llm: FusionRAGLLM, monkeypatch: pytest.MonkeyPatch, call: Callable[..., Any]
) -> None:
    loop_ran = threading.Event()
    prepare = llm.engine.pipeline.prepare

    def wait_and_prepare(request: Any) -> None:
        assert loop_ran.wait(timeout=10)
        prepare(request)

    monkeypatch.setattr(llm.engine.pipeline, "prepare", wait_and_prepare)
    task = asyncio.create_task(call(llm))
    await asyncio.sleep(0.01)
    loop_ran.set()
    await task


@every_asynchronous_method
@pytest.mark.asyncio
async def test_an_asynchronous_call_is_one_event(
    llm: FusionRAGLLM, call: Callable[..., Any]
) -> None:
    handler = LlamaDebugHandler(print_trace_on_end=False)
    llm.callback_manager = CallbackManager([handler])
    await call(llm)
    assert len(handler.get_llm_inputs_outputs()) == 1


def test_fields_are_the_settings_of_every_call(engine: FusionEngine, prompt: str) -> None:
    fields = {"selector": "random", "ratio": 0.5, "kv": "isolated", "max_tokens": 3}
    raw = FusionRAGLLM(engine=engine, **fields).complete(prompt).raw
    assert raw["usage"] == engine.answer(prompt, AnswerSettings(**fields)).report()["usage"]
    assert raw["chunks"] == {"fused": 0, "isolated": 3, "missed": 0, "captured": 0}
    assert raw["usage"]["recompute_ratio"] == pytest.approx(0.5, abs=0.01)


def test_a_call_changes_its_own_settings_only(
    llm: FusionRAGLLM, prompt: str, completion: Answer
) -> None:
    handles = [KVHandle("unknown", "key")]
    changed = llm.complete(prompt, selector="none", max_tokens=2, handles=handles).raw["usage"]
    assert (changed["recomputed_tokens"], changed["completion_tokens"]) == (0, 2)
    check_raw(llm.complete(prompt).raw, completion)


def test_full_attention_equals_recomputing_everything(llm: FusionRAGLLM, prompt: str) -> None:
    full, anew = llm.complete(prompt, kv="none"), llm.complete(prompt, selector="all")
    assert full.text == anew.text
    assert full.raw["usage"]["recomputed_tokens"] == 0
    assert anew.raw["usage"]["recompute_ratio"] == 1.0


def test_a_stop_string_ends_the_answer_before_it(
    engine: FusionEngine, llm: FusionRAGLLM, prompt: str, completion: Answer
) -> None:
    stop = completion.text[len(completion.text) // 2 :][:3]
    expected = completion.text[: completion.text.index(stop)]
    assert llm.complete(prompt, stop=[stop]).text == expected
    assert FusionRAGLLM(engine=engine, max_tokens=12, stop=[stop]).complete(prompt).text == expected


def test_an_unknown_setting_of_a_call_is_named(llm: FusionRAGLLM) -> None:
    with pytest.raises(InvalidInputError, match=r"takes no 'raito'\. Did you mean 'ratio'"):
        llm.complete(QUESTION, raito=0.3)
    with pytest.raises(InvalidInputError, match=r"takes no 'raito'\. Did you mean 'ratio'"):
        llm.chat([ChatMessage(content=QUESTION)], raito=0.3)


def test_impossible_values_are_refused(engine: FusionEngine, llm: FusionRAGLLM) -> None:
    with pytest.raises(InvalidInputError, match="ratio is 2"):
        FusionRAGLLM(engine=engine, ratio=2)
    with pytest.raises(InvalidInputError, match="ratio is 2"):
        llm.complete(QUESTION, ratio=2)


def test_metadata_is_the_models_own(engine: FusionEngine, llm: FusionRAGLLM) -> None:
    metadata = llm.metadata
    assert metadata.context_window == engine.context_window == 2048
    assert metadata.num_output == 12
    assert metadata.is_chat_model
    assert metadata.model_name == engine.model_name


def test_a_model_without_chat_template_is_no_chat_model(plain_engine: FusionEngine) -> None:
    assert not FusionRAGLLM(engine=plain_engine).metadata.is_chat_model


def test_a_model_without_chat_template_chats_by_messages_to_prompt(
    plain_engine: FusionEngine,
) -> None:
    llm = FusionRAGLLM(engine=plain_engine, max_tokens=12)
    messages = [
        ChatMessage(role="system", content="Be brief."),
        ChatMessage(role="user", content=QUESTION),
    ]
    expected = plain_engine.answer(
        f"system: Be brief.\nuser: {QUESTION}\nassistant: ", SETTINGS
    ).text
    assert llm.chat(messages).message.content == expected
    assert "".join(r.delta or "" for r in llm.stream_chat(messages)) == expected


def test_users_may_word_messages_and_prompts(plain_engine: FusionEngine) -> None:
    def word(prompt: str) -> str:
        return f"Q: {prompt} A:"

    llm = FusionRAGLLM(
        engine=plain_engine,
        max_tokens=12,
        messages_to_prompt=lambda messages: word(messages[-1].content or ""),
        completion_to_prompt=word,
    )
    expected = plain_engine.answer(word(QUESTION), SETTINGS).text
    assert llm.chat([ChatMessage(content=QUESTION)]).message.content == expected
    assert llm.complete(QUESTION).text == expected
    assert llm.complete(word(QUESTION), formatted=True).text == expected


@pytest.mark.parametrize("role", [MessageRole.TOOL, MessageRole.FUNCTION])
def test_other_roles_are_refused(llm: FusionRAGLLM, role: MessageRole) -> None:
    with pytest.raises(InvalidInputError, match=f"role '{role.value}' are not supported"):
        llm.chat([ChatMessage(content="2 + 2?"), ChatMessage(role=role, content="4")])


@pytest.mark.parametrize("which", ["engine", "plain_engine"])
def test_images_are_refused(request: pytest.FixtureRequest, which: str) -> None:
    llm = FusionRAGLLM(engine=request.getfixturevalue(which))
    blocks = [TextBlock(text="What is it?"), ImageBlock(image=b"AA==", image_mimetype="image/png")]
    with pytest.raises(InvalidInputError, match="content other than text"):
        llm.chat([ChatMessage(blocks=blocks)])


def test_blocks_of_text_are_joined() -> None:
    message = ChatMessage(blocks=[TextBlock(text="Where"), TextBlock(text="is it?")])
    assert to_messages([message]) == [{"role": "user", "content": "Where\nis it?"}]


def test_an_empty_prompt_is_refused(llm: FusionRAGLLM) -> None:
    with pytest.raises(InvalidInputError, match="prompt is empty"):
        llm.complete(" ")


class TestWordedPrompts:
    """What LlamaIndex or the user has worded is the model's whole text."""

    @pytest.fixture
    def worded(self, prompt: str) -> str:
        return (
            f"<s><|system|>\nBe brief.<|end|>\n<|user|>\n{prompt}<|end|>\n<|assistant|>\nThe house"
        )

    @pytest.fixture
    def expected(self, engine: FusionEngine, prompt: str) -> Answer:
        """To the same as messages, with an answer that is begun."""
        return engine.answer(
            [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": prompt},
                {"role": "assistant", "content": "The house"},
            ],
            SETTINGS,
        )

    @pytest.mark.asyncio
    async def test_formatted_prompts(
        self, llm: FusionRAGLLM, worded: str, expected: Answer
    ) -> None:
        check_raw(llm.complete(worded, formatted=True).raw, expected)
        check_raw(list(llm.stream_complete(worded, formatted=True))[-1].raw, expected)
        check_raw((await llm.acomplete(worded, formatted=True)).raw, expected)
        stream = await llm.astream_complete(worded, formatted=True)
        check_raw([response async for response in stream][-1].raw, expected)

    def test_formatted_is_raw_whatever_it_looks_like(
        self, engine: FusionEngine, llm: FusionRAGLLM
    ) -> None:
        response = llm.complete(QUESTION, formatted=True)
        expected = engine.answer(QUESTION, replace(SETTINGS, raw=True))
        assert response.raw["usage"] == expected.report()["usage"]
        wrapped = llm.complete(QUESTION).raw["usage"]["prompt_tokens"]
        assert response.raw["usage"]["prompt_tokens"] < wrapped
        as_field = FusionRAGLLM(engine=engine, max_tokens=12, raw=True)
        assert as_field.complete(QUESTION).raw["usage"] == response.raw["usage"]

    @pytest.mark.asyncio
    async def test_completion_to_prompt(
        self, engine: FusionEngine, prompt: str, worded: str, expected: Answer
    ) -> None:
        begin, end = worded.split(prompt)
        llm = FusionRAGLLM(
            engine=engine, max_tokens=12, completion_to_prompt=lambda p: begin + p + end
        )
        check_raw(llm.complete(prompt).raw, expected)
        check_raw((await llm.acomplete(prompt)).raw, expected)
        check_raw(list(llm.stream_complete(prompt))[-1].raw, expected)
        check_raw(llm.complete(worded, formatted=True).raw, expected)
        assert not llm.metadata.is_chat_model
        assert llm.predict(PromptTemplate("{it}"), it=prompt) == expected.text
        count = llm.prompt_helper()._prompt_tokens(PromptTemplate("{it}"))
        assert count == engine.count_tokens(f"{begin}x{end}")

    @pytest.mark.asyncio
    async def test_messages_to_prompt(
        self, engine: FusionEngine, prompt: str, worded: str, expected: Answer
    ) -> None:
        def word(messages: Sequence[ChatMessage]) -> str:
            return worded.replace(prompt, messages[-1].content or "")

        llm = FusionRAGLLM(engine=engine, max_tokens=12, messages_to_prompt=word)
        messages = [ChatMessage(content=prompt)]
        check_raw(llm.chat(messages).raw, expected)
        check_raw((await llm.achat(messages)).raw, expected)
        check_raw(list(llm.stream_chat(messages))[-1].raw, expected)
        stream = await llm.astream_chat(messages)
        check_raw([response async for response in stream][-1].raw, expected)
        assert llm.predict(PromptTemplate("{it}"), it=prompt) == expected.text
        count = llm.prompt_helper()._prompt_tokens(PromptTemplate("{it}"))
        assert count == engine.count_tokens(worded.replace(prompt, "x"))

    def test_a_begun_answer_of_a_chat(
        self, llm: FusionRAGLLM, prompt: str, expected: Answer
    ) -> None:
        messages = [
            ChatMessage(role="system", content="Be brief."),
            ChatMessage(role="user", content=prompt),
            ChatMessage(role="assistant", content="The house"),
        ]
        check_raw(llm.chat(messages).raw, expected)

    def test_plain_prompts_are_still_a_users_message(
        self, llm: FusionRAGLLM, engine: FusionEngine
    ) -> None:
        wrapped = engine.answer([{"role": "user", "content": QUESTION}], SETTINGS)
        assert llm.complete(QUESTION).raw["usage"] == wrapped.report()["usage"]
        assert llm.predict(PromptTemplate("{it}"), it=QUESTION) == wrapped.text

    def test_raw_asks_query_engines_for_text(self, engine: FusionEngine) -> None:
        llm = FusionRAGLLM(engine=engine, max_tokens=12, raw=True)
        expected = engine.answer(QUESTION, replace(SETTINGS, raw=True)).text
        assert llm.predict(PromptTemplate("{it}"), it=QUESTION) == expected
