"""The clients that people have: OpenAI's own, LangChain's and LlamaIndex's, and curl."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

from fusionrag_integrations import AnswerSettings, AnswerStream, FusionEngine
from tests.conftest import town
from tests.server.conftest import Running
from tests.steps import PATIENCE, scripted_stream

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

PROMPT = f"{town(0).text}\n\nWhich house?"
SETTINGS = AnswerSettings(max_tokens=6)
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "How the weather is at a place.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
    },
}
CALL = json.dumps({"name": "weather", "arguments": {"place": "Bute"}})
CALLS = f"Let me see.\n<tool_call>\n{CALL}\n</tool_call><tool_call>{CALL}</tool_call>"


@tool
def weather(place: str) -> str:
    """How the weather is at a place."""
    return f"{place}: fair"


@pytest.fixture
def client(served: Running) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{served.url}/v1", api_key="none", timeout=PATIENCE, max_retries=0
    )


@pytest.fixture
def chat(served: Running, filled: FusionEngine) -> ChatOpenAI:
    return ChatOpenAI(
        base_url=f"{served.url}/v1",
        api_key="none",  # type: ignore[arg-type]
        model=filled.model_name,
        max_retries=0,
        max_completion_tokens=6,
        temperature=0,
    )


@pytest.fixture
def llm(served: Running, filled: FusionEngine) -> OpenAILike:
    return OpenAILike(
        api_base=f"{served.url}/v1",
        api_key="none",
        model=filled.model_name,
        is_chat_model=True,
        max_retries=0,
        temperature=0,
        max_tokens=6,
        context_window=filled.context_window,
    )


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[AnswerSettings]]:
    """Puts words into the model's mouth; the settings of each call are noted."""

    def say(text: str) -> list[AnswerSettings]:
        asked: list[AnswerSettings] = []
        stream, half = FusionEngine.stream, len(text) // 2

        def streamed(engine: FusionEngine, prompt: Any, settings: AnswerSettings) -> AnswerStream:
            asked.append(settings)
            own = stream(engine, prompt, settings)
            told = replace(own.read(), text=text, finish_reason="stop")
            return scripted_stream((text[:half], text[half:]), told)

        monkeypatch.setattr(FusionEngine, "stream", streamed)
        return asked

    return say


def own_answer(engine: FusionEngine) -> str:
    return engine.answer([{"role": "user", "content": PROMPT}], SETTINGS).text


class TestOpenAIs:
    def test_answers(self, client: openai.OpenAI, filled: FusionEngine) -> None:
        found = client.chat.completions.create(
            model=filled.model_name,
            messages=[{"role": "user", "content": PROMPT}],
            max_completion_tokens=6,
            extra_body={"ratio": 0.15, "scopes": [""]},
        )
        assert found.choices[0].message.content == own_answer(filled)
        assert found.usage is not None
        assert found.usage.prompt_tokens_details is not None
        assert (found.usage.prompt_tokens_details.cached_tokens or 0) > 0
        assert (found.model_extra or {})["fusionrag"]["chunks"]["missed"] == 0
        assert (found._request_id or "").startswith("req_")
        text = client.completions.create(model=filled.model_name, prompt=PROMPT, max_tokens=6)
        assert text.choices[0].text == own_answer(filled)

    def test_streams(self, client: openai.OpenAI, filled: FusionEngine) -> None:
        stream = client.chat.completions.create(
            model=filled.model_name,
            messages=[{"role": "user", "content": PROMPT}],
            max_tokens=6,
            stream=True,
            stream_options={"include_usage": True},
        )
        *found, last = stream
        text = "".join(chunk.choices[0].delta.content or "" for chunk in found)
        assert text == own_answer(filled)
        assert last.usage is not None
        assert last.usage.completion_tokens == 6

    def test_streams_in_an_event_loop(self, served: Running, filled: FusionEngine) -> None:
        async def ask() -> str:
            async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
                stream = await client.completions.create(
                    model=filled.model_name, prompt=PROMPT, max_tokens=6, stream=True
                )
                return "".join([chunk.choices[0].text async for chunk in stream])

        assert asyncio.run(ask()) == own_answer(filled)

    def test_models(self, client: openai.OpenAI, filled: FusionEngine) -> None:
        [model] = client.models.list().data
        assert model.id == filled.model_name
        facts = (client.models.retrieve(model.id).model_extra or {})["fusionrag"]
        catalog = filled.store.catalog
        assert facts == {
            "context_window": filled.context_window,
            "has_chat_template": True,
            "supports_tools": True,
            "store": {
                "signature": catalog.info.record_signature,
                "revision": catalog.revision,
            },
        }

    def test_errors(self, client: openai.OpenAI, filled: FusionEngine) -> None:
        ask = client.completions.create
        name = filled.model_name
        with pytest.raises(openai.BadRequestError, match="n is 3") as refused:
            ask(model=name, prompt=PROMPT, n=3)
        assert refused.value.param == "n"
        with pytest.raises(openai.BadRequestError) as too_long:
            ask(model=name, prompt="one two " * 3000)
        assert too_long.value.code == "context_length_exceeded"
        with pytest.raises(openai.NotFoundError, match="no model 'gpt'"):
            ask(model="gpt", prompt=PROMPT)

    def test_calls_tools(self, client: openai.OpenAI, filled: FusionEngine, says: Any) -> None:
        asked = says(CALLS)
        found = client.chat.completions.create(
            model=filled.model_name,
            messages=[{"role": "user", "content": PROMPT}],
            tools=[WEATHER],
            tool_choice="auto",
        )
        [choice] = found.choices
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == "Let me see."
        assert [schema["function"]["name"] for schema in asked[0].tools] == ["weather"]
        first, second = choice.message.tool_calls or []
        assert first.id != second.id
        assert first.type == "function"
        assert first.function.name == "weather"
        assert json.loads(first.function.arguments) == {"place": "Bute"}

    def test_calls_that_cannot_be_made_are_given_as_they_were_written(
        self, client: openai.OpenAI, filled: FusionEngine, says: Any
    ) -> None:
        says('<tool_call>{"name": "weather", "arguments": 5}</tool_call><tool_call>oh</tool_call>')
        found = client.chat.completions.create(
            model=filled.model_name,
            messages=[{"role": "user", "content": PROMPT}],
            tools=[WEATHER],
        )
        calls: Any = found.choices[0].message.tool_calls
        assert [(c.function.name, c.function.arguments) for c in calls] == [
            ("weather", "5"),
            ("", "oh"),
        ]
        assert found.choices[0].message.content is None

    def test_no_tool_is_called_where_none_may_be(
        self, client: openai.OpenAI, filled: FusionEngine, says: Any
    ) -> None:
        asked = says(CALLS)
        found = client.chat.completions.create(
            model=filled.model_name,
            messages=[{"role": "user", "content": PROMPT}],
            tools=[WEATHER],
            tool_choice="none",
        )
        assert asked[0].tools == ()
        assert found.choices[0].message.content == CALLS
        assert found.choices[0].finish_reason == "stop"
        choices: list[Any] = ["required", {"type": "function", "function": {"name": "weather"}}]
        for choice in choices:
            with pytest.raises(openai.BadRequestError, match="can't be forced"):
                client.chat.completions.create(
                    model=filled.model_name,
                    messages=[{"role": "user", "content": PROMPT}],
                    tools=[WEATHER],
                    tool_choice=choice,
                )

    def test_goes_on_after_a_call(self, client: openai.OpenAI, filled: FusionEngine) -> None:
        """Its own message and the result are what the engine gets in process."""
        function = {"name": "weather", "arguments": '{"place": "Bute"}'}
        call = {"id": "call00001", "type": "function", "function": function}
        spoken: list[Any] = [
            {"role": "user", "content": PROMPT},
            {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None},
            {"role": "tool", "content": "Bute: fair", "tool_call_id": "call00001"},
        ]
        found = client.chat.completions.create(
            model=filled.model_name, messages=spoken, tools=[WEATHER], max_tokens=6
        )
        told = {"name": "weather", "arguments": {"place": "Bute"}}
        own: list[Any] = [
            spoken[0],
            {"role": "assistant", "content": "", "tool_calls": [{**call, "function": told}]},
            {**spoken[2], "name": "weather"},
        ]
        answer = filled.answer(own, replace(SETTINGS, tools=(WEATHER,)))
        assert found.choices[0].message.content == answer.text
        assert found.usage is not None
        assert found.usage.prompt_tokens == answer.usage.prompt_tokens
        function["arguments"] = "[]"
        with pytest.raises(openai.BadRequestError, match="give a JSON object"):
            client.chat.completions.create(model=filled.model_name, messages=spoken)


class TestLangChains:
    def test_answers_and_streams(self, chat: ChatOpenAI, filled: FusionEngine) -> None:
        message = chat.invoke(PROMPT)
        assert message.text == own_answer(filled)
        assert message.usage_metadata is not None
        assert message.usage_metadata["input_token_details"]["cache_read"] > 0
        streamed = list(chat.stream(PROMPT, stream_usage=True))
        assert "".join(chunk.text for chunk in streamed) == own_answer(filled)
        assert any(chunk.usage_metadata for chunk in streamed)

    def test_messages_and_batches(self, chat: ChatOpenAI, filled: FusionEngine) -> None:
        spoken = [
            SystemMessage("Be brief."),
            HumanMessage(PROMPT),
            AIMessage("a"),
            HumanMessage("b"),
        ]
        first, second = chat.batch([spoken, PROMPT])
        assert second.text == own_answer(filled)
        own = filled.answer(
            [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": PROMPT},
                {"role": "assistant", "content": "a"},
                {"role": "user", "content": "b"},
            ],
            SETTINGS,
        )
        assert first.text == own.text

    def test_settings_and_stops(self, chat: ChatOpenAI, filled: FusionEngine) -> None:
        text = own_answer(filled)
        stopped = chat.invoke(PROMPT, stop=[text[3:6]])
        assert stopped.text == text[: text.index(text[3:6])]
        asked = {"extra_body": {"kv": "none"}, "seed": 5}
        found = chat.invoke(PROMPT, **asked)  # type: ignore[arg-type]
        assert found.usage_metadata is not None
        assert found.usage_metadata["input_token_details"]["cache_read"] == 0
        with pytest.raises(openai.BadRequestError, match="logprobs"):
            chat.bind(logprobs=True).invoke(PROMPT)

    @pytest.mark.parametrize("streamed", [False, True])
    def test_tools(self, chat: ChatOpenAI, says: Any, streamed: bool) -> None:
        says(CALLS)
        bound = chat.bind_tools([weather])
        message: Any = bound.invoke(PROMPT)
        if streamed:
            first, *rest = bound.stream(PROMPT)
            message = sum(rest, first)
        assert message.text == "Let me see."
        assert [call["args"] for call in message.tool_calls] == [{"place": "Bute"}] * 2
        assert weather.invoke(message.tool_calls[0]).content == "Bute: fair"

    def test_results_of_tools(self, chat: ChatOpenAI, says: Any) -> None:
        says(CALLS)
        bound = chat.bind_tools([weather])
        message: Any = bound.invoke(PROMPT)
        results = [ToolMessage("fair", tool_call_id=call["id"]) for call in message.tool_calls]
        says("It is fair.")
        assert bound.invoke([HumanMessage(PROMPT), message, *results]).text == "It is fair."


class TestLlamaIndexs:
    def test_answers_and_streams(self, llm: OpenAILike, filled: FusionEngine) -> None:
        assert llm.complete(PROMPT).text == own_answer(filled)
        spoken = [ChatMessage(role="user", content=PROMPT)]
        assert llm.chat(spoken).message.content == own_answer(filled)
        *_, last = llm.stream_chat(spoken)
        assert last.message.content == own_answer(filled)

    def test_completions(self, llm: OpenAILike, filled: FusionEngine) -> None:
        plain = llm.model_copy(update={"is_chat_model": False})
        assert plain.complete(PROMPT).text == own_answer(filled)
        *_, last = plain.stream_complete(PROMPT)
        assert last.text == own_answer(filled)

    def test_in_an_event_loop(self, llm: OpenAILike, filled: FusionEngine) -> None:
        assert asyncio.run(llm.acomplete(PROMPT)).text == own_answer(filled)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl(served: Running, filled: FusionEngine) -> None:
    def curl(path: str, body: dict[str, Any]) -> str:
        command = ["curl", "-sN", f"{served.url}{path}", "-H", "Content-Type: application/json"]
        run = subprocess.run(
            [*command, "-d", json.dumps(body)], capture_output=True, text=True, check=True
        )
        return run.stdout

    body = {"prompt": PROMPT, "max_tokens": 6}
    whole = json.loads(curl("/v1/completions", body))
    assert whole["choices"][0]["text"] == own_answer(filled)
    streamed = curl("/v1/completions", body | {"stream": True})
    assert streamed.endswith("data: [DONE]\n\n")
