"""Tools: told of by the model's own chat template, and read from what it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import tool
from pydantic import BaseModel
from transformers import AutoTokenizer

from fusionrag_integrations import AnswerSettings, FusionEngine
from fusionrag_integrations.answer import AnswerStream
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.langchain import ChatFusionRAG
from fusionrag_integrations.langchain.messages import to_messages
from fusionrag_integrations.langchain.tool_calls import PlainText, read_tool_calls
from tests.langchain.templates import WITH_TOOLS

QUESTION = "When does the ferry leave?"


@tool
def timetable(place: str, day: int = 1) -> str:
    """When ferries leave a place."""
    return f"{place}: at noon on day {day}"


@tool
def weather(place: str) -> str:
    """How the weather is at a place."""
    return f"{place}: fair"


class Ferry(BaseModel):
    """A ferry and when it leaves."""

    name: str
    hour: int


@pytest.fixture(scope="module")
def engine_with_tools(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> FusionEngine:
    engine = FusionEngine.from_pretrained(model_dir, store=tmp_path_factory.mktemp("tools"))
    engine.model.tokenizer = AutoTokenizer.from_pretrained(model_dir, chat_template=WITH_TOOLS)
    return engine


@pytest.fixture
def chat(engine_with_tools: FusionEngine) -> ChatFusionRAG:
    return ChatFusionRAG(engine=engine_with_tools, max_tokens=4)


Says = Callable[[str], list[AnswerSettings]]


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Says:
    """Puts words into the model's mouth; the settings of each call are noted."""

    def say(text: str) -> list[AnswerSettings]:
        asked: list[AnswerSettings] = []
        stream, half = FusionEngine.stream, len(text) // 2

        def streamed(engine: FusionEngine, prompt: Any, settings: AnswerSettings) -> AnswerStream:
            asked.append(settings)
            own = stream(engine, prompt, settings)
            assert list(own)
            told = replace(own.answer, text=text)
            return AnswerStream(event for event in (text[:half], text[half:], told))

        monkeypatch.setattr(FusionEngine, "stream", streamed)
        return asked

    return say


def call(name: str, /, **arguments: Any) -> str:
    return json.dumps({"name": name, "arguments": arguments})


class TestTheModelIsTold:
    def test_by_its_own_template(self, engine_with_tools: FusionEngine) -> None:
        bound = ChatFusionRAG(engine=engine_with_tools, max_tokens=2).bind_tools([timetable])
        settings = AnswerSettings(max_tokens=2, tools=tuple(bound.kwargs["tools"]))  # type: ignore[attr-defined]
        answer = engine_with_tools.answer(to_messages([HumanMessage(QUESTION)]), settings)
        assert answer.trace is not None
        assert answer.trace.text.startswith("<s><|system|>\nTools: [")
        assert '"When ferries leave a place."' in answer.trace.text
        plain = engine_with_tools.answer(QUESTION, AnswerSettings(max_tokens=2))
        assert plain.trace is not None
        assert "Tools" not in plain.trace.text

    @pytest.mark.parametrize(
        ("choice", "told"),
        [
            (None, ["timetable", "weather"]),
            ("auto", ["timetable", "weather"]),
            ("any", ["timetable", "weather"]),
            (True, ["timetable", "weather"]),
            ("weather", ["weather"]),
            ({"type": "function", "function": {"name": "weather"}}, ["weather"]),
            ("none", []),
        ],
    )
    def test_of_the_tools_that_it_may_choose(
        self, chat: ChatFusionRAG, says: Says, choice: Any, told: list[str]
    ) -> None:
        asked = says("Hello.")
        chat.bind_tools([timetable, weather], tool_choice=choice).invoke(QUESTION)
        assert [schema["function"]["name"] for schema in asked[0].tools] == told

    def test_calls_and_results_go_back_to_it(self, chat: ChatFusionRAG) -> None:
        made = {"name": "weather", "args": {"place": "Bute"}, "id": "1", "type": "tool_call"}
        messages = to_messages(
            [
                HumanMessage(QUESTION),
                AIMessage("", tool_calls=[made]),
                ToolMessage("Bute: fair", tool_call_id="1", name="weather"),
            ]
        )
        assert messages[1]["tool_calls"][0]["function"] == {
            "name": "weather",
            "arguments": {"place": "Bute"},
        }
        assert messages[2] == {
            "role": "tool",
            "content": "Bute: fair",
            "tool_call_id": "1",
            "name": "weather",
        }
        answer = chat.engine.answer(messages, AnswerSettings(max_tokens=1))
        assert answer.trace is not None
        assert '"arguments": {"place": "Bute"}' in answer.trace.text
        assert "<|tool|>\nBute: fair<|end|>" in answer.trace.text

    def test_a_template_without_words_for_tools(self, engine: FusionEngine) -> None:
        chat = ChatFusionRAG(engine=engine)
        for bind in (
            lambda: chat.bind_tools([weather]),
            lambda: chat.with_structured_output(Ferry),
        ):
            with pytest.raises(InvalidInputError, match="has no words for tools"):
                bind()
        with pytest.raises(InvalidInputError, match="has no words for tools"):
            chat.invoke([HumanMessage(QUESTION), ToolMessage("fair", tool_call_id="1")])
        with pytest.raises(InvalidInputError, match="has no words for tools"):
            chat.invoke(QUESTION, tools=[{"type": "function", "function": {"name": "x"}}])

    def test_a_choice_of_no_tool_and_schemas_of_none(self, chat: ChatFusionRAG) -> None:
        with pytest.raises(InvalidInputError, match=r"no tool 'sun' .* timetable, weather"):
            chat.bind_tools([timetable, weather], tool_choice="sun")
        with pytest.raises(InvalidInputError, match="in OpenAI's form"):
            chat.invoke(QUESTION, tools=["weather"])


class TestWhatItSaysIsRead:
    def test_in_a_message(self, chat: ChatFusionRAG, says: Says) -> None:
        says(f"Let me see.\n<tool_call>\n{call('weather', place='Bute')}\n</tool_call>")
        message = chat.bind_tools([weather, timetable]).invoke(QUESTION)
        assert message.content == "Let me see."
        [found] = message.tool_calls
        assert (found["name"], found["args"]) == ("weather", {"place": "Bute"})
        assert weather.invoke(found).content == "Bute: fair"

    def test_in_a_stream(self, chat: ChatFusionRAG, says: Says) -> None:
        says(f"<tool_call>{call('weather', place='Bute')}</tool_call><tool_call>oh</tool_call>")
        chunks = list(chat.bind_tools([weather]).stream(QUESTION))
        whole = reduce(add, chunks)
        assert isinstance(whole, AIMessageChunk)
        assert [c["args"] for c in whole.tool_calls] == [{"place": "Bute"}]
        assert [c["args"] for c in whole.invalid_tool_calls] == ["oh"]
        assert "tool_call" not in whole.text
        assert whole.usage_metadata is not None

    def test_as_structured_output(self, chat: ChatFusionRAG, says: Says) -> None:
        says(f"<tool_call>{call('Ferry', name='Loch', hour=9)}</tool_call>")
        assert chat.with_structured_output(Ferry).invoke(QUESTION) == Ferry(name="Loch", hour=9)
        schema = {"title": "Ferry", "description": "It.", **Ferry.model_json_schema()}
        told = chat.with_structured_output(schema).invoke(QUESTION)
        assert told == {"name": "Loch", "hour": 9}

    def test_with_the_message_that_it_was_read_from(self, chat: ChatFusionRAG, says: Says) -> None:
        structured = chat.with_structured_output(Ferry, include_raw=True)
        says(f"<tool_call>{call('Ferry', name='Loch', hour=9)}</tool_call>")
        told: Any = structured.invoke(QUESTION)
        assert told["parsed"] == Ferry(name="Loch", hour=9)
        assert told["parsing_error"] is None
        assert told["raw"].tool_calls[0]["args"] == {"name": "Loch", "hour": 9}
        assert told["raw"].usage_metadata["total_tokens"] > 0
        says(f"<tool_call>{call('Ferry', name='Loch', hour='noon')}</tool_call>")
        told = structured.invoke(QUESTION)
        assert told["parsed"] is None
        assert "valid integer" in str(told["parsing_error"])
        says("At nine.")
        told = structured.invoke(QUESTION)
        assert (told["parsed"], told["raw"].content) == (None, "At nine.")

    def test_in_a_stream_whose_text_comes_as_it_is_said(
        self, chat: ChatFusionRAG, says: Says
    ) -> None:
        says(f"Let me see, it will take a while.\n<tool_call>{call('weather')}</tool_call>")
        first, *others = chat.bind_tools([weather]).stream(QUESTION)
        assert isinstance(first, AIMessageChunk)
        assert len(first.text) > 10
        whole = reduce(add, others, first)
        assert whole.content == "Let me see, it will take a while."
        assert [c["name"] for c in whole.tool_calls] == ["weather"]

    @pytest.mark.asyncio
    async def test_in_an_asynchronous_stream(self, chat: ChatFusionRAG, says: Says) -> None:
        says(f"So: <tool_call>{call('weather', place='Bute')}</tool_call>")
        chunks = [chunk async for chunk in chat.bind_tools([weather]).astream(QUESTION)]
        whole = reduce(add, chunks)
        assert (whole.text, [c["args"] for c in whole.tool_calls]) == ("So:", [{"place": "Bute"}])
        says("Good day.")
        chunks = [chunk async for chunk in chat.bind_tools([weather]).astream(QUESTION)]
        assert reduce(add, chunks).content == "Good day."

    def test_without_tools_it_is_text(self, chat: ChatFusionRAG, says: Says) -> None:
        text = f"<tool_call>{call('weather', place='Bute')}</tool_call>"
        says(text)
        message = chat.invoke(QUESTION)
        assert message.content == text
        assert message.tool_calls == []


TOOLS = [{"type": "function", "function": {"name": name}} for name in ("weather", "timetable")]


WIDE = " " * 1_000_000  # as long as no model writes; it takes no longer than other text


@pytest.mark.parametrize(
    "text",
    [
        f"<tool_call>{WIDE}{call('weather')}{WIDE}</tool_call>",
        f"[TOOL_CALLS]{WIDE}{call('weather')}{WIDE}",
        f"{WIDE}{call('weather')}{WIDE}",
        f"{WIDE}<|python_tag|>{WIDE}{call('weather')}",
    ],
    ids=["tagged", "listed", "bare", "python"],
)
def test_white_space_around_calls_is_passed_over(text: str) -> None:
    said = read_tool_calls(text, TOOLS)
    assert (said.text, [call["name"] for call in said.calls], said.invalid) == ("", ["weather"], [])


@pytest.mark.parametrize(
    "text", [f"<tool_call>a{WIDE}b</tool_call>", f"{WIDE}no", "<tool_call>" * 90_000]
)
def test_what_is_no_call_takes_no_longer(text: str) -> None:
    assert read_tool_calls(text, TOOLS).calls == []


FORMS: list[tuple[str, str, list[tuple[str, dict[str, Any]]]]] = [
    ("No.", "No.", []),
    (f"<tool_call>{call('weather', place='A')}</tool_call>", "", [("weather", {"place": "A"})]),
    (f"<tool_call>{call('weather', place='A')}", "", [("weather", {"place": "A"})]),
    (
        f"<tool_call>{call('weather')}</tool_call> and <tool_call>{call('timetable', day=2)}"
        "</tool_call>",
        "and",
        [("weather", {}), ("timetable", {"day": 2})],
    ),
    (
        f"[TOOL_CALLS] [{call('weather', place='A')}, {call('timetable')}]",
        "",
        [("weather", {"place": "A"}), ("timetable", {})],
    ),
    ('{"name": "weather", "parameters": {"place": "A"}}', "", [("weather", {"place": "A"})]),
    (f"<|python_tag|>{call('weather')}", "", [("weather", {})]),
    (
        json.dumps({"function": {"name": "weather", "arguments": '{"day": 1}'}}),
        "",
        [("weather", {"day": 1})],
    ),
    ('{"name": "Bute", "size": 3}', '{"name": "Bute", "size": 3}', []),
    ("[1, 2]", "[1, 2]", []),
    (f"It is {call('weather')} so.", f"It is {call('weather')} so.", []),
]


@pytest.mark.parametrize(("text", "rest", "calls"), FORMS)
def test_forms_of_calls(text: str, rest: str, calls: list[tuple[str, dict[str, Any]]]) -> None:
    said = read_tool_calls(text, TOOLS)
    assert said.text == rest
    assert [(found["name"], found["args"]) for found in said.calls] == calls
    assert said.invalid == []
    assert len({found["id"] for found in said.calls}) == len(calls)


@pytest.mark.parametrize(
    ("written", "error"),
    [
        ("{'name': 'weather'}", "This is no JSON"),
        (call("sun"), "There is no tool 'sun'; there are timetable, weather."),
        ('{"name": "weather", "arguments": [1]}', "The arguments are no object."),
        ('{"name": "weather", "arguments": "{"}', "The arguments are no object."),
        ("3", "There is no tool ''"),
    ],
)
def test_calls_that_cannot_be(written: str, error: str) -> None:
    said = read_tool_calls(f"<tool_call>{written}</tool_call>", TOOLS)
    assert said.calls == []
    [found] = said.invalid
    assert str(found["error"]).startswith(error)


OTHERS = [
    "  It is fair.\n",
    "Is 3 < 5? <tool_calls> isn't one, [TOOL] neither.",
    "See:  \n <tool_call>oh</tool_call>  and then some.",
    " <tool_call>oh</tool_call>",
    "{so it goes",
    "",
]


@pytest.mark.parametrize("text", [*(text for text, _, _ in FORMS), *OTHERS])
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_what_is_told_early_is_what_the_text_begins_with(text: str, size: int) -> None:
    plain, said = PlainText(TOOLS), read_tool_calls(text, TOOLS)
    told = [plain.push(text[at : at + size]) for at in range(0, len(text), size)]
    assert said.text.startswith("".join(told))
    assert plain.told == len("".join(told))
    assert all("<tool_call>" not in piece for piece in told)
    assert "".join(PlainText([]).push(letter) for letter in text) == text


def test_text_is_told_as_soon_as_it_is_certain() -> None:
    plain = PlainText(TOOLS)
    pieces = ["It ", "is <", " 5.\n", "\nSo <tool", "_call>{", "} no"]
    assert [plain.push(p) for p in pieces] == ["It", " is", " < 5.", "\n\nSo", "", ""]


@pytest.mark.parametrize(
    "block",
    [
        {"type": "tool_use", "id": "1", "name": "weather", "input": {"place": "Bute"}},
        {"type": "tool_call", "id": "1", "name": "weather", "args": {"place": "Bute"}},
        {"type": "thinking", "thinking": "Hm.", "signature": "x"},
        {"type": "reasoning", "reasoning": "Hm."},
    ],
    ids=lambda block: block["type"],
)
def test_what_an_answer_holds_beside_its_text_is_passed_over(block: dict[str, Any]) -> None:
    """Calls are in the message's `tool_calls`, from whichever model they are."""
    made = {"name": "weather", "args": {"place": "Bute"}, "id": "1", "type": "tool_call"}
    message = AIMessage([{"type": "text", "text": "So."}, block], tool_calls=[made])
    [worded] = to_messages([message])
    assert worded["content"] == "So."
    assert len(worded["tool_calls"]) == 1
    with pytest.raises(InvalidInputError, match="other than text"):
        to_messages([HumanMessage([block])])


def test_tools_count_among_the_tokens(chat: ChatFusionRAG) -> None:
    messages = [HumanMessage(QUESTION)]
    message = chat.bind_tools([weather]).invoke(messages)
    assert message.usage_metadata is not None
    count = chat.get_num_tokens_from_messages(messages, tools=[weather])
    assert count == message.usage_metadata["input_tokens"]
    assert count > chat.get_num_tokens_from_messages(messages)
