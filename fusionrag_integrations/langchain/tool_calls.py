"""A model's text -> what it says and which tools it calls.

Models write calls in the form that their chat template taught them. Known are

    <tool_call>{"name": ..., "arguments": {...}}</tool_call>     Qwen, Hermes and others
    <|tool_call|>[{"name": ..., "arguments": {...}}]             Phi-4-mini
    [TOOL_CALLS] [{"name": ..., "arguments": {...}}, ...]        Mistral, up to 2024
    [TOOL_CALLS]name[ARGS]{...}                                  Mistral since, once for each call,
    [TOOL_CALLS]name[CALL_ID]id[ARGS]{...}                       some with ids
    {"name": ..., "parameters": {...}}                           Llama 3, as all of the text
    name                                                         GLM4, likewise: the arguments are
    {...}                                                        on the lines below
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from langchain_core.messages import InvalidToolCall, ToolCall
from langchain_core.messages.tool import invalid_tool_call, tool_call

from fusionrag_integrations.inputs import parse_json
from fusionrag_integrations.keys import tool_call_id

_TAGGED = (
    re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL),
    re.compile(r"<\|tool_call\|>(.*?)(?:<\|/tool_call\|>|\Z)", re.DOTALL),
)
_LISTED, _ID, _ARGUMENTS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
_MARKS = ("<tool_call>", "<|tool_call|>", _LISTED)
_PYTHON = "<|python_tag|>"
_BARE_MARKS = (_PYTHON, "{", "[")  # of a call that is all of the text


@dataclass(frozen=True, slots=True)
class Said:
    """text: without the calls. invalid: calls of no known tool, or with broken arguments."""

    text: str
    calls: list[ToolCall]
    invalid: list[InvalidToolCall]

    def with_arguments(self) -> Iterator[tuple[ToolCall | InvalidToolCall, str]]:
        """All calls, with their arguments as text."""
        for call in self.calls:
            yield call, json.dumps(call["args"])
        for broken in self.invalid:
            yield broken, broken["args"] or ""


class PlainText:
    """Lets through the pieces of a text that are certainly no call of a tool.

    told: how many characters that were. They are those that `read_tool_calls` has as text.
    """

    def __init__(self, tools: Sequence[Mapping[str, Any]]) -> None:
        self.tools = tools
        self.told = 0
        self._bare = (*_BARE_MARKS, *(f"{name}\n" for name in _names(tools)))
        self._held = ""
        self._calls = False  # whether all that comes may be one

    def push(self, piece: str) -> str:
        """What is certain after this piece; all of it where there are no tools."""
        if self._calls:
            return ""
        self._held += piece
        certain = self._certain() if self.tools else len(self._held)
        text, self._held = self._held[:certain], self._held[certain:]
        self.told += certain
        return text

    def _certain(self) -> int:
        """How many characters are: those before what may begin a call, without white space."""
        text = self._held
        if not self.told:
            start = text.lstrip()
            self._calls = start.startswith(self._bare)
            if any(start.startswith(mark[: len(start)]) for mark in self._bare):
                return 0
        found = [at for at in map(text.find, _MARKS) if at >= 0]
        self._calls = bool(found)
        open_ends = [
            len(text) - n for mark in _MARKS for n in range(1, len(mark)) if text.endswith(mark[:n])
        ]
        return len(text[: min([*found, *open_ends, len(text)])].rstrip())


def read_tool_calls(text: str, tools: Sequence[Mapping[str, Any]]) -> Said:
    """Find the calls in a text. Without tools there are none, whatever it looks like."""
    if not tools:
        return Said(text, [], [])
    names = _names(tools)
    for form in _TAGGED:
        if written := form.findall(text):
            before, *others = form.split(text)[:: form.groups + 1]
            parts = [before.rstrip(), *map(str.strip, others)]
            return Said(" ".join(filter(None, parts)), *_read(written, names))
    before, *written = text.split(_LISTED)
    if written:
        return Said(before.rstrip(), *_read(written, names))
    bare = text.strip().removeprefix(_PYTHON).strip()
    name, _, arguments = bare.partition("\n")
    if name.strip() in names:
        bare = f"{name}{_ARGUMENTS}{arguments}"
    elif not bare.startswith(("[", "{")):
        return Said(text, [], [])
    calls, invalid = _read([bare], names)
    if calls and not invalid:
        return Said("", calls, [])
    return Said(text, [], [])  # an answer that happens to look like a call


def _names(tools: Sequence[Mapping[str, Any]]) -> set[str]:
    return {tool["function"]["name"] for tool in tools}


def _read(written: Sequence[str], names: set[str]) -> tuple[list[ToolCall], list[InvalidToolCall]]:
    """Calls that are JSON, alone or in a list, or that are named before their arguments."""
    calls: list[ToolCall] = []
    invalid: list[InvalidToolCall] = []
    taken: set[str] = set()
    for one in map(str.strip, written):
        named, rest = _named(one)
        try:
            content = parse_json(rest)
        except ValueError as error:
            invalid.append(_invalid(named.get("name"), rest, f"This is no JSON: {error}"))
            continue
        if named:
            content = named | {"arguments": content}
        for call in content if isinstance(content, list) else [content]:
            name, arguments, given_id = _parts(call)
            if name not in names:
                told = f"There is no tool {name!r}; there are {', '.join(sorted(names))}."
                invalid.append(_invalid(name, json.dumps(call), told))
            elif not isinstance(arguments, dict):
                told = "The arguments are no object."
                invalid.append(_invalid(name, json.dumps(arguments), told))
            else:
                origin = given_id if given_id and given_id not in taken else uuid4().hex
                taken.add(given_id)
                calls.append(tool_call(name=name, args=arguments, id=tool_call_id(origin)))
    return calls, invalid


def _named(written: str) -> tuple[dict[str, str], str]:
    """A call's name and id where they stand before its arguments, and what should be JSON of it."""
    head, mark, arguments = written.partition(_ARGUMENTS)
    if not mark:  # not every tokenizer has it
        head, brace, rest = written.partition("{")
        arguments = brace + rest
    if written.startswith(("[", "{")) or not (mark or arguments):
        return {}, written
    name, _, given_id = head.partition(_ID)
    return {"name": name.strip(), "id": given_id.strip()}, arguments


def _parts(call: Any) -> tuple[str, Any, str]:
    """A call's name, its arguments, and its id, which is empty where it has none."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return "", None, ""
    given_id = call.get("id")
    arguments = function.get("arguments", function.get("parameters", {}))
    if isinstance(arguments, str):  # some write them as JSON within JSON
        with suppress(ValueError):  # then they are no object, which is told
            arguments = parse_json(arguments)
    return str(function.get("name", "")), arguments, given_id if isinstance(given_id, str) else ""


def _invalid(name: str | None, args: str, error: str) -> InvalidToolCall:
    return invalid_tool_call(name=name, args=args, id=tool_call_id(uuid4().hex), error=error)
