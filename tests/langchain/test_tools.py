"""Tools: told of by the model's own chat template, and read from what it says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from operator import add
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import tool
from pydantic import BaseModel
from tokenizers import Tokenizer
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from fusionrag_integrations import AnswerSettings, FusionEngine
from fusionrag_integrations.adapters.tool_calls import PlainText, parse_output
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.langchain import ChatFusionRAG
from fusionrag_integrations.langchain.messages import to_messages
from fusionrag_integrations.serving.answer import AnswerStream
from tests.langchain.templates import FAMILIES, WITH_TOOLS, WITHOUT_TOOLS, Family
from tests.steps import scripted_stream

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
            return scripted_stream((text[:half], text[half:]), told)

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
            with pytest.raises(InvalidInputError, match="doesn't support tools"):
                bind()
        with pytest.raises(InvalidInputError, match="doesn't support tools"):
            chat.invoke([HumanMessage(QUESTION), ToolMessage("fair", tool_call_id="1")])
        with pytest.raises(InvalidInputError, match="doesn't support tools"):
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
        assert [json.loads(str(c["args"])) for c in whole.invalid_tool_calls] == ["oh"]
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


@pytest.fixture(params=FAMILIES)
def family(
    request: pytest.FixtureRequest, chat: ChatFusionRAG, monkeypatch: pytest.MonkeyPatch
) -> Family:
    """A family whose template the model has."""
    family = FAMILIES[request.param]
    monkeypatch.setattr(chat.engine.model.tokenizer, "chat_template", family.template)
    return family


class TestTheFamiliesThatKnowTools:
    CALLS: ClassVar[list[tuple[str, dict[str, Any]]]] = [
        ("weather", {"place": "Bute, {by} the [sea]"}),
        ("timetable", {"place": "Bute", "day": 2}),
    ]

    @pytest.mark.parametrize("streamed", [False, True])
    def test_calls_are_read_and_go_back_with_their_results(
        self, family: Family, chat: ChatFusionRAG, says: Says, streamed: bool
    ) -> None:
        calls = self.CALLS[: family.at_once]
        says(family.write(calls))
        bound = chat.bind_tools([weather, timetable])
        message = reduce(add, bound.stream(QUESTION)) if streamed else bound.invoke(QUESTION)
        assert [(c["name"], c["args"]) for c in message.tool_calls] == calls
        assert (message.text, message.invalid_tool_calls) == ("", [])
        assert len({c["id"] for c in message.tool_calls}) == len(calls)
        tools = {"weather": weather, "timetable": timetable}
        results = [tools[c["name"]].invoke(c) for c in message.tool_calls]
        text = self.told(chat, [HumanMessage(QUESTION), message, *results])
        assert all(result.content in text for result in results)

    @pytest.mark.parametrize(
        "known", ["call_8f3a0c", "x" * 40, "12", "", None, "abc-def_g", "ÄÖÜäöü123"]
    )
    def test_ids_from_elsewhere_fit_too(
        self, family: Family, chat: ChatFusionRAG, known: str | None
    ) -> None:
        """A result still has its call's id, of however many there are."""
        ids = [known, known and f"{known}2"][: family.at_once]
        calls = [
            {"name": name, "args": args, "id": i, "type": "tool_call"}
            for i, (name, args) in zip(ids, self.CALLS, strict=False)
        ]
        results = [
            ToolMessage(f"result {n}", tool_call_id=i or "", name=self.CALLS[n][0])
            for n, i in enumerate(ids)
        ]
        chat_so_far = [HumanMessage(QUESTION), AIMessage("", tool_calls=calls), *results]
        text = self.told(chat, chat_so_far)
        assert text == self.told(chat, chat_so_far)
        found = re.findall(r'(?:"id": "|"call_id": "|CALL_ID\]|TOOL_RESULTS\])(\w{9})\b', text)
        if "nine" in str(family.template):
            assert found == [*found[: len(calls)]] * 2
            assert len(set(found)) == len(calls)
            assert all(re.fullmatch("[A-Za-z0-9]{9}", i) for i in found)

    def test_ids_that_fit_stay(self, family: Family, chat: ChatFusionRAG) -> None:
        call = {"name": "weather", "args": {}, "id": "AbCdEf012", "type": "tool_call"}
        result = ToolMessage("fair", tool_call_id="AbCdEf012")
        text = self.told(chat, [HumanMessage(QUESTION), AIMessage("", tool_calls=[call]), result])
        assert text.count("AbCdEf012") == (2 if "nine" in str(family.template) else 0)

    def told(self, chat: ChatFusionRAG, messages: list[Any]) -> str:
        """The text that the model reads of messages."""
        bound: Any = chat.bind_tools([weather, timetable])
        settings = AnswerSettings(max_tokens=1, tools=tuple(bound.kwargs["tools"]))
        trace = chat.engine.answer(to_messages(messages), settings).trace
        assert trace is not None
        return trace.text

    def test_text_before_calls_is_said(
        self, family: Family, chat: ChatFusionRAG, says: Says
    ) -> None:
        written = family.write(self.CALLS[: family.at_once])
        if not written.startswith(("[TOOL_CALLS]", "<tool_call>")):
            pytest.skip("In this form a call is all of the text.")
        says(f"Let me see.\n\n{written}")
        message = reduce(add, chat.bind_tools([weather, timetable]).stream(QUESTION))
        assert message.text == "Let me see."
        assert [(c["name"], c["args"]) for c in message.tool_calls] == self.CALLS


@pytest.mark.parametrize("template", WITHOUT_TOOLS.values(), ids=WITHOUT_TOOLS)
def test_families_whose_template_is_not_told_of_tools(
    template: str, chat: ChatFusionRAG, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat.engine.model.tokenizer, "chat_template", template)
    with pytest.raises(InvalidInputError, match="doesn't support tools"):
        chat.bind_tools([weather])


@pytest.fixture
def special_calls(chat: ChatFusionRAG, monkeypatch: pytest.MonkeyPatch) -> ChatFusionRAG:
    """A model whose tokenizer has Mistral's marks as special tokens, in the place of others."""
    tokenizer = chat.engine.model.tokenizer
    text = tokenizer.backend_tokenizer.to_str()
    marks = {"<|system|>": "[TOOL_CALLS]", "<|user|>": "[ARGS]", "<pad>": "[CALL_ID]"}
    for old, new in marks.items():
        text = text.replace(json.dumps(old), json.dumps(new))
    own = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(text),
        bos_token="<s>",
        eos_token="<|end|>",
        extra_special_tokens=list(marks.values()),
        chat_template=FAMILIES["mistral-v11"].template,
    )
    monkeypatch.setattr(chat.engine.model, "tokenizer", own)
    return chat


def generate(chat: ChatFusionRAG, text: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make the model generate this text, token by token."""
    tokenizer = chat.engine.model.tokenizer
    ids = [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    biases = [[ids[: count + 1], 1e4 * (count + 1)] for count in range(len(ids))]
    config = GenerationConfig(sequence_bias=biases, eos_token_id=tokenizer.eos_token_id)
    monkeypatch.setattr(chat.engine.model.hf, "generation_config", config)
    return ids


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("form", ["mistral-v3", "mistral-v11", "mistral-v13"])
def test_marks_of_calls_that_are_special_tokens(
    special_calls: ChatFusionRAG, form: str, streamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They aren't shown otherwise, and then no call could be told from text."""
    calls: list[Any] = [("weather", {}), ("timetable", {"day": 2})]
    written = f"So:{FAMILIES[form].write(calls)}"
    ids = generate(special_calls, written, monkeypatch)
    assert len(set(ids) & set(special_calls.engine.model.tokenizer.all_special_ids)) > 1
    bound = special_calls.bind_tools([weather, timetable], max_tokens=len(ids))
    message = reduce(add, bound.stream(QUESTION)) if streamed else bound.invoke(QUESTION)
    assert message.text == "So:"
    assert [(c["name"], c["args"]) for c in message.tool_calls] == calls
    said = special_calls.invoke(QUESTION, max_tokens=len(ids))
    assert "[" + "TOOL_CALLS]" not in said.text  # without tools they are what they always were


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
    said = parse_output(text, TOOLS)
    assert (said.text, [call["name"] for call in said.calls], said.invalid) == ("", ["weather"], [])


@pytest.mark.parametrize(
    "text",
    [
        f"<tool_call>a{WIDE}b</tool_call>",
        f"{WIDE}no",
        f"{WIDE}weather{WIDE}",
        "<tool_call>" * 90_000,
        "<tool_call>{oh</tool_call>" * 8_000,
        '<tool_call>"</tool_call>"' * 8_000,
        '<tool_call>\\"x</tool_call>' * 8_000,
        "<tool_call>[" * 60_000,
        "[TOOL_CALLS]weather{" * 8_000,
        '[TOOL_CALLS]weather[ARGS]["' * 8_000,
        "{" * 1_000_000,
        '{"' + '\\"' * 500_000,
        '<tool_call>{"' + '\\"' * 500_000,
        "{};" * 8_000,
    ],
    ids=range(14),
)
def test_what_is_no_call_takes_no_longer(text: str) -> None:
    began = perf_counter()
    assert parse_output(text, TOOLS).calls == []
    assert perf_counter() - began < 2.0


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
    (
        '[TOOL_CALLS]weather[ARGS]{"place": "A"}[TOOL_CALLS] timetable [ARGS] {} ',
        "",
        [("weather", {"place": "A"}), ("timetable", {})],
    ),
    ('[TOOL_CALLS]weather[CALL_ID]123456789[ARGS]{"day": 3}', "", [("weather", {"day": 3})]),
    ('Well. [TOOL_CALLS]weather{"day": 3}', "Well.", [("weather", {"day": 3})]),
    ('[TOOL_CALLS]{"name": "weather"}[TOOL_CALLS]weather[ARGS]{}', "", [("weather", {})] * 2),
    ('weather\n{"place": "A"}', "", [("weather", {"place": "A"})]),
    ('Weather\n{"place": "A"}', 'Weather\n{"place": "A"}', []),
    ("weather\nis fair", "weather\nis fair", []),
    ('{"name": "Bute", "size": 3}', '{"name": "Bute", "size": 3}', []),
    ("[1, 2]", "[1, 2]", []),
    (f"It is {call('weather')} so.", f"It is {call('weather')} so.", []),
    (
        f"{call('weather', place='A;')}; {call('timetable')};",
        "",
        [("weather", {"place": "A;"}), ("timetable", {})],
    ),
    (
        f"<|python_tag|>{call('weather')};{call('timetable')}",
        "",
        [("weather", {}), ("timetable", {})],
    ),
    (f"{call('weather')}; so", f"{call('weather')}; so", []),
    ('weather \t\r\n{"place": "A"}', "", [("weather", {"place": "A"})]),
    ('\n weather\n\n{"place": "A"}\n', "", [("weather", {"place": "A"})]),
    ("weather {} ", "weather {} ", []),
    (
        f"<tool_call>{call('weather')}<tool_call>{call('timetable')}</tool_call>",
        "",
        [("weather", {}), ("timetable", {})],
    ),
    (
        f"So: <tool_call>{call('weather')}</tool_call> [TOOL_CALLS]timetable[ARGS]{{}}",
        "So:",
        [("weather", {}), ("timetable", {})],
    ),
]


@pytest.mark.parametrize(("text", "rest", "calls"), FORMS)
def test_forms_of_calls(text: str, rest: str, calls: list[tuple[str, dict[str, Any]]]) -> None:
    said = parse_output(text, TOOLS)
    assert said.text == rest
    assert [(found["name"], found["args"]) for found in said.calls] == calls
    assert said.invalid == []
    assert len({found["id"] for found in said.calls}) == len(calls)


MARKS = [
    *("<tool_call>", "</tool_call>", "<|tool_call|>", "<|/tool_call|>", "<|python_tag|>"),
    *("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]", ";", "{", "]", '\\"', "weather\n{}"),
]


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize(
    "form",
    [
        "<tool_call>\n{call}\n</tool_call>",
        "<tool_call>{call}",
        "<|tool_call|>[{call}]<|/tool_call|>",
        "[TOOL_CALLS] [{call}]",
        "[TOOL_CALLS]weather[ARGS]{arguments}",
        "[TOOL_CALLS]weather{arguments}",
        "[TOOL_CALLS]weather[CALL_ID]123456789[ARGS]{arguments}",
        "{call}",
        "<|python_tag|>{call}; {call}",
        "weather\n{arguments}",
    ],
)
def test_arguments_may_spell_marks(form: str, mark: str) -> None:
    given = {"q": f'What is {mark}?{mark}" {mark}', mark: [mark, "\\"]}
    written = form.replace("{call}", call("weather", **given))
    text = written.replace("{arguments}", json.dumps(given))
    for before in ("",) if written.startswith(("{", "<|python", "weather")) else ("", "So: "):
        said = parse_output(before + text, TOOLS)
        assert (said.text, said.invalid) == (before.rstrip(), [])
        assert [found["args"] for found in said.calls] == [given] * max(1, form.count("{call}"))


@pytest.mark.parametrize(
    "broken", ["{'a': 'it\"s'}", '{"a": "', '{"a": "\\', '{"a": "b"" }', "\\", '"\\"']
)
def test_a_broken_call_takes_no_other_with_it(broken: str) -> None:
    good = f"<tool_call>{call('weather', q='</tool_call>')}</tool_call>"
    said = parse_output(f"<tool_call>{broken}</tool_call> so {good}{good}", TOOLS)
    assert said.text == "so"
    assert [found["args"] for found in said.calls] == [{"q": "</tool_call>"}] * 2
    assert [found["args"] for found in said.invalid] == [broken]
    good = f"[TOOL_CALLS]weather[ARGS]{json.dumps({'q': '[TOOL_CALLS]'})}"
    said = parse_output(f"[TOOL_CALLS]weather[ARGS]{broken}{good}{good}", TOOLS)
    assert [found["args"] for found in said.calls] == [{"q": "[TOOL_CALLS]"}] * 2
    assert [found["args"] for found in said.invalid] == [broken]


@pytest.mark.parametrize(
    ("written", "error"),
    [
        ("{'name': 'weather'}", "This is no JSON"),
        ("", "This is no JSON"),
        ("[]", "This list holds no call."),
        (call("weather", a=float("nan")), "This is no JSON: NaN is no number in JSON"),
        (call("weather", a=[float("-inf")]), "This is no JSON: -Infinity is no number in JSON"),
        ('{"name": "weather", "arguments": {"a": 1e999}}', "This is no JSON: 1e999 is too large"),
        (call("sun"), "There is no tool 'sun'; there are timetable, weather."),
        ('{"name": "weather", "arguments": [1]}', "The arguments are no object."),
        ('{"name": "weather", "arguments": "{"}', "The arguments are no object."),
        ("3", "There is no tool ''"),
    ],
)
def test_calls_that_cannot_be(written: str, error: str) -> None:
    said = parse_output(f"<tool_call>{written}</tool_call>", TOOLS)
    assert said.calls == []
    [found] = said.invalid
    assert str(found["error"]).startswith(error)


@pytest.mark.parametrize(
    ("written", "name", "args", "error"),
    [
        ("weather[ARGS]{oh", "weather", "{oh", "This is no JSON"),
        ("weather[ARGS]", "weather", "", "This is no JSON"),
        ("weather[ARGS][1]", "weather", "[1]", "The arguments are no object."),
        (
            "sun[ARGS]{}",
            "sun",
            '{"name": "sun", "id": "", "arguments": {}}',
            "There is no tool 'sun'",
        ),
        ("weather", None, "weather", "This is no JSON"),
    ],
)
def test_named_calls_that_cannot_be(written: str, name: str | None, args: str, error: str) -> None:
    said = parse_output(f"So.[TOOL_CALLS]timetable[ARGS]{{}}[TOOL_CALLS]{written}", TOOLS)
    assert (said.text, [c["name"] for c in said.calls]) == ("So.", ["timetable"])
    [found] = said.invalid
    assert (found["name"], found["args"]) == (name, args)
    assert str(found["error"]).startswith(error)


def test_ids_that_a_model_gives_are_its_calls() -> None:
    """Where they can be, and no other call has them."""
    text = "".join(f"[TOOL_CALLS]weather[CALL_ID]{i}[ARGS]{{}}" for i in ("a1B2c3D4e",) * 2)
    first, second = (call["id"] for call in parse_output(text, TOOLS).calls)
    assert first == "a1B2c3D4e" != second
    listed = '[TOOL_CALLS] [{"name": "weather", "arguments": {}, "id": "a1B2c3D4e"}]'
    assert [call["id"] for call in parse_output(listed, TOOLS).calls] == ["a1B2c3D4e"]
    odd = "[TOOL_CALLS]weather[CALL_ID]call_7[ARGS]{}"
    assert re.fullmatch("[A-Za-z0-9]{9}", str(parse_output(odd, TOOLS).calls[0]["id"]))


def test_long_answers_are_read_piece_by_piece_in_no_time() -> None:
    """What was told isn't looked at again."""
    starts = [("", text) for text in ("a <", "{", "[", " ", "weather ", "<tool_call>")]
    for start, text in [*starts, ("", "\n"), ("So", " "), ("So", "\n"), ("weather", " ")]:
        plain, began = PlainText(TOOLS), perf_counter()
        plain.push(start)
        for _ in range(100_000):
            plain.push(text)
        assert perf_counter() - began < 2.0


OTHERS = [
    "  It is fair.\n",
    "Is 3 < 5? <tool_calls> isn't one, [TOOL] neither.",
    "See:  \n <tool_call>oh</tool_call>  and then some.",
    " <tool_call>oh</tool_call>",
    "{so it goes",
    "",
    "weather \n{oh",
    'weather  \n{"place": NaN}',
    "weather \t is fair",
    "weathering\n{}",
    " \n time",
    "<tool_call>[]</tool_call> so <tool_call>[",
    'So. [TOOL_CALLS]weather[ARGS]{"q": "[TOOL_CALLS]',
    '{"name": "weather", "parameters": {"q": "<tool_call>"}} <tool_call>oh',
    "<|python_tag|>print(1)",
    "<|python_tag",
]


BROKEN = [
    f"<tool_call>{call('sun')}</tool_call>",
    f"<tool_call>{call('weather', place='Bute')[:-9]}",
    "<tool_call></tool_call>",
    "[TOOL_CALLS]weather[ARGS]",
    "[TOOL_CALLS]weather[ARGS]{oh",
    '[TOOL_CALLS]weather[ARGS]{"place": "Bu',
    '[TOOL_CALLS]weather[ARGS]{"place": NaN}',
    f"[TOOL_CALLS]weather[ARGS]{{}}[TOOL_CALLS]oh{'h' * 9000}",
]


@pytest.mark.parametrize("text", [*(text for text, _, _ in FORMS), *OTHERS, *BROKEN])
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_what_is_told_early_is_what_the_text_begins_with(text: str, size: int) -> None:
    plain, said = PlainText(TOOLS), parse_output(text, TOOLS)
    told = [plain.push(text[at : at + size]) for at in range(0, len(text), size)]
    assert said.text.startswith("".join(told))
    assert plain.length == len("".join(told))
    assert all("<tool_call>" not in piece for piece in told)
    assert "".join(PlainText([]).push(letter) for letter in text) == text


@pytest.mark.parametrize("text", [*(text for text, _, _ in FORMS), *OTHERS, *BROKEN])
@pytest.mark.parametrize("pieces", ["letters", "tokens", "whole"])
def test_a_stream_says_what_the_whole_does(
    chat: ChatFusionRAG, text: str, pieces: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text, calls and what can't be called; only errors have no place in LangChain's chunks."""
    cut = {"letters": ".", "tokens": r"\s?\w+|\W", "whole": ".+"}[pieces]
    stream = FusionEngine.stream

    def streamed(engine: FusionEngine, prompt: Any, settings: AnswerSettings) -> AnswerStream:
        own = stream(engine, prompt, settings)
        assert list(own)
        told = replace(own.answer, text=text)
        return scripted_stream(re.findall(cut, text, re.DOTALL), told)

    monkeypatch.setattr(FusionEngine, "stream", streamed)
    bound = chat.bind_tools([weather, timetable], max_tokens=1)
    whole, summed = bound.invoke(QUESTION), reduce(add, bound.stream(QUESTION))
    assert summed.text == whole.text
    for kind in ("tool_calls", "invalid_tool_calls"):
        read, heard = getattr(whole, kind), getattr(summed, kind)
        assert [c["name"] for c in heard] == [c["name"] for c in read]
    assert [c["args"] for c in summed.tool_calls] == [c["args"] for c in whole.tool_calls]
    heard = [json.loads(c["args"]) for c in summed.invalid_tool_calls]
    assert heard == [c["args"] for c in whole.invalid_tool_calls]


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
