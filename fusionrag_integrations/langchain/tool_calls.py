"""A model's text -> what it says and which tools it calls.

Models write calls in the form that their chat template taught them. Known are

    <tool_call>{"name": ..., "arguments": {...}}</tool_call>     Qwen, Hermes and others
    [TOOL_CALLS] [{"name": ..., "arguments": {...}}, ...]        Mistral
    {"name": ..., "parameters": {...}}                           Llama 3, as all of the text
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from langchain_core.messages import InvalidToolCall, ToolCall
from langchain_core.messages.tool import invalid_tool_call, tool_call

_TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_LISTED = re.compile(r"\[TOOL_CALLS\](.*)\Z", re.DOTALL)
_MARKS = ("<tool_call>", "[TOOL_CALLS]")
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
        self._text = ""

    def push(self, piece: str) -> str:
        """What is certain after this piece; all of it where there are no tools."""
        self._text += piece
        text = self._text[self.told : self._certain()]
        self.told += len(text)
        return text

    def _certain(self) -> int:
        """How many characters are: those before what may begin a call, without white space."""
        text = self._text
        if not self.tools:
            return len(text)
        start = text.lstrip()
        if any(start.startswith(mark[: len(start)]) for mark in _BARE_MARKS):
            return 0
        found = [at for at in map(text.find, _MARKS) if at >= 0]
        open_ends = [
            len(text) - n for mark in _MARKS for n in range(1, len(mark)) if text.endswith(mark[:n])
        ]
        return len(text[: min([*found, *open_ends, len(text)])].rstrip())


def read_tool_calls(text: str, tools: Sequence[Mapping[str, Any]]) -> Said:
    """Find the calls in a text. Without tools there are none, whatever it looks like."""
    if not tools:
        return Said(text, [], [])
    names = {tool["function"]["name"] for tool in tools}
    for form in (_TAGGED, _LISTED):
        if written := form.findall(text):
            calls, invalid = _read([one.strip() for one in written], names)
            before, *others = form.split(text)[:: form.groups + 1]
            parts = [before.rstrip(), *map(str.strip, others)]
            return Said(" ".join(filter(None, parts)), calls, invalid)
    bare = text.strip().removeprefix(_PYTHON).strip()
    if bare.startswith(("[", "{")) and bare.endswith(("]", "}")):
        calls, invalid = _read([bare], names)
        if calls and not invalid:  # else it is an answer that happens to be JSON
            return Said("", calls, [])
    return Said(text, [], [])


def _read(written: Sequence[str], names: set[str]) -> tuple[list[ToolCall], list[InvalidToolCall]]:
    calls: list[ToolCall] = []
    invalid: list[InvalidToolCall] = []
    for one in written:
        try:
            content = json.loads(one)
        except ValueError as error:
            invalid.append(_invalid(None, one, f"This is no JSON: {error}"))
            continue
        for call in content if isinstance(content, list) else [content]:
            name, arguments = _parts(call)
            if name not in names:
                told = f"There is no tool {name!r}; there are {', '.join(sorted(names))}."
                invalid.append(_invalid(name, json.dumps(call), told))
            elif not isinstance(arguments, dict):
                told = "The arguments are no object."
                invalid.append(_invalid(name, json.dumps(arguments), told))
            else:
                calls.append(tool_call(name=name, args=arguments, id=_new_id()))
    return calls, invalid


def _parts(call: Any) -> tuple[str, Any]:
    if not isinstance(call, dict):
        return "", None
    call = call.get("function", call)
    arguments = call.get("arguments", call.get("parameters", {}))
    if isinstance(arguments, str):  # some write them as JSON within JSON
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return str(call.get("name", "")), arguments
    return str(call.get("name", "")), arguments


def _invalid(name: str | None, args: str, error: str) -> InvalidToolCall:
    return invalid_tool_call(name=name, args=args, id=_new_id(), error=error)


def _new_id() -> str:
    return f"call_{uuid4().hex}"
