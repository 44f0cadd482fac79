"""A model's output -> its text and the tools that it calls.

Models write calls in the form of their chat template. Known are

    <tool_call>{"name": ..., "arguments": {...}}</tool_call>     Qwen, Hermes and others
    <|tool_call|>[{"name": ..., "arguments": {...}}]             Phi-4-mini
    [TOOL_CALLS] [{"name": ..., "arguments": {...}}, ...]        Mistral, up to 2024
    [TOOL_CALLS]name[ARGS]{...}                                  Mistral since, once for each call,
    [TOOL_CALLS]name[CALL_ID]id[ARGS]{...}                       some with ids
    {"name": ..., "parameters": {...}}; {...}                    Llama 3, as all of the text
    name                                                         GLM4, likewise: the arguments are
    {...}                                                        on the lines below

Marks within JSON strings don't count: an argument may spell any of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, TypedDict
from uuid import uuid4

from fusionrag_integrations.documents.keys import tool_call_id
from fusionrag_integrations.support.inputs import parse_json

_LISTED, _ARGUMENTS = "[TOOL_CALLS]", "[ARGS]"
_CLOSING = {
    "<tool_call>": re.escape("</tool_call>"),
    "<|tool_call|>": re.escape("<|/tool_call|>"),
    _LISTED: rf"(?={re.escape(_LISTED)})",  # has none: the next call closes it
}
_OPENING = re.compile("|".join(map(re.escape, _CLOSING)))
# Strings come first, so that marks in them don't match; only what is searched for is a group.
_STRING = r'"[^"\\]*(?:\\.[^"\\]*)*"?|\\.'
_END = {  # of a call that is JSON
    mark: re.compile(rf"{_STRING}|({closing}|(?={_OPENING.pattern})|\Z)", re.DOTALL)
    for mark, closing in _CLOSING.items()
}
_BROKEN_END = {mark: re.compile(rf"{closing}|\Z") for mark, closing in _CLOSING.items()}
_SEPARATOR = re.compile(rf"{_STRING}|(;)", re.DOTALL)
# A name and an id before the arguments; not every tokenizer has the mark between.
_HEAD = re.compile(r"([^\[{]*+)(?:\[CALL_ID\]([^\[{]*+))?(?:\[ARGS\]|(?=\{))")
_PYTHON = "<|python_tag|>"
_BARE_MARKS = (_PYTHON, "{", "[")  # of a call that is all of the text


class ToolCall(TypedDict):
    """A call of a tool, in LangChain's form: args are its arguments, by name."""

    name: str
    args: dict[str, Any]
    id: str | None
    type: Literal["tool_call"]


class InvalidToolCall(TypedDict):
    """A call that can't be made, likewise. args: as they were written. error: why not."""

    name: str | None
    args: str | None
    id: str | None
    error: str | None
    type: Literal["invalid_tool_call"]


@dataclass(frozen=True, slots=True)
class ParsedOutput:
    """text: without the calls. invalid: calls of unknown tools, or with malformed arguments."""

    text: str
    calls: list[ToolCall]
    invalid: list[InvalidToolCall]

    def with_arguments(self) -> Iterator[tuple[ToolCall | InvalidToolCall, str]]:
        """All calls, with their arguments as JSON; those of invalid calls are a JSON string.

        LangChain would complete malformed JSON, and make a valid call of it.
        """
        for call in self.calls:
            yield call, json.dumps(call["args"])
        for invalid in self.invalid:
            yield invalid, json.dumps(invalid["args"])


class PlainText:
    """Passes on the pieces of a text that certainly belong to no tool call.

    length: of the text passed on; `ParsedOutput.text` begins with it.
    """

    def __init__(self, tools: Sequence[Mapping[str, Any]]) -> None:
        self.tools = tools
        self.length = 0
        self._names = _names(tools)
        self._held: list[str] = []
        self._calls = False  # whether the rest may be calls

    def push(self, piece: str) -> str:
        """The text that is certain after this piece; all of it if there are no tools."""
        if self._calls:
            return ""
        self._held.append(piece)
        if self.tools and piece.isspace():  # decided with the next piece, at constant cost
            return ""
        text = "".join(self._held)
        certain = self._certain(text) if self.tools else len(text)
        self._held = [text[certain:]]
        self.length += certain
        return text[:certain]

    def _certain(self, text: str) -> int:
        """How many characters are certain: those before a possible call and white space."""
        if not self.length:
            start = text.lstrip()
            self._calls = _starts_bare(start, self._names)
            if self._calls or self._may_start_bare(start):
                return 0
        found = _OPENING.search(text)
        self._calls = bool(found)
        open_ends = [
            len(text) - n
            for mark in _CLOSING
            for n in range(1, len(mark))
            if text.endswith(mark[:n])
        ]
        ends = [found.start()] if found else open_ends
        return len(text[: min([*ends, len(text)])].rstrip())

    def _may_start_bare(self, start: str) -> bool:
        """Whether it may yet become the start of a call that is all of the text."""
        if "\n" in start:
            return False
        return _PYTHON.startswith(start) or any(
            name.startswith(start) or name == start.rstrip() for name in self._names
        )


def parse_output(text: str, tools: Sequence[Mapping[str, Any]]) -> ParsedOutput:
    """Find the calls in a text. Without tools there are none, whatever it looks like."""
    if not tools:
        return ParsedOutput(text, [], [])
    names = _names(tools)
    if _starts_bare(text.lstrip(), names):
        calls, invalid = _read(_bare(text, names), names)
        if calls and not invalid:
            return ParsedOutput("", calls, [])  # otherwise an answer that only looks like a call
    (before, *others), written = _split(text)
    if not written:
        return ParsedOutput(text, [], [])
    parts = [before.rstrip(), *map(str.strip, others)]
    return ParsedOutput(" ".join(filter(None, parts)), *_read(written, names))


def _names(tools: Sequence[Mapping[str, Any]]) -> set[str]:
    return {tool["function"]["name"] for tool in tools}


def _starts_bare(start: str, names: set[str]) -> bool:
    """Whether a text, without white space before it, starts as one that is a call as a whole."""
    name, line_end, _ = start.partition("\n")
    return start.startswith(_BARE_MARKS) or bool(line_end and name.strip() in names)


@dataclass(frozen=True, slots=True)
class _Written:
    """A call as it was written, or a list of them.

    named: name and id, where they precede the arguments. rest: the part that should be JSON.
    content: that part, parsed. error: why it isn't JSON.
    """

    named: dict[str, str]
    rest: str
    content: Any = None
    error: str = ""


def _split(text: str) -> tuple[list[str], list[_Written]]:
    """The texts around marked calls, and the calls.

    A call that is JSON ends at the first mark outside of strings. Otherwise quotes mean nothing,
    and it ends at the first mark.
    """
    around: list[str] = []
    written: list[_Written] = []
    at = 0
    while mark := _OPENING.search(text, at):
        around.append(text[at : mark.start()])
        begin, found = mark.end(), _END[mark[0]].finditer(text, mark.end())
        end = next(match for match in found if match.lastindex)
        call = _written(text[begin : end.start()])
        if call.error and (first := _BROKEN_END[mark[0]].search(text, begin)):
            end, call = first, _written(text[begin : first.start()])
        written.append(call)
        at = end.end()
    return [*around, text[at:]], written


def _bare(text: str, names: set[str]) -> Iterator[_Written]:
    """The calls of a text that has no other marks, separated by semicolons."""
    bare = text.strip().removeprefix(_PYTHON).strip()
    name, _, arguments = bare.partition("\n")
    if name.strip() in names:
        yield _written(f"{name}{_ARGUMENTS}{arguments}")
        return
    at = 0
    for separator in _SEPARATOR.finditer(bare):
        if separator.lastindex:
            yield _written(bare[at : separator.start()])
            at = separator.end()
    if at < len(bare):
        yield _written(bare[at:])


def _written(text: str) -> _Written:
    text = text.strip()
    head = _HEAD.match(text)
    named, rest = {}, text
    if head and head[1].strip():
        named = {"name": head[1].strip(), "id": (head[2] or "").strip()}
        rest = text[head.end() :]
    try:
        return _Written(named, rest, content=parse_json(rest, finite=True))
    except ValueError as error:
        return _Written(named, rest, error=f"This is no JSON: {error}")


def _read(
    written: Iterable[_Written], names: set[str]
) -> tuple[list[ToolCall], list[InvalidToolCall]]:
    """The calls that can be made, and those that can't."""
    calls: list[ToolCall] = []
    invalid: list[InvalidToolCall] = []
    taken: set[str] = set()
    for one in written:
        if one.error:
            invalid.append(_invalid(one.named.get("name"), one.rest, one.error))
            continue
        content = one.named | {"arguments": one.content} if one.named else one.content
        if content == []:
            invalid.append(_invalid(None, one.rest, "This list holds no call."))
        for call in content if isinstance(content, list) else [content]:
            name, arguments, given_id = _parts(call)
            if name not in names:
                error = f"There is no tool {name!r}; there are {', '.join(sorted(names))}."
                invalid.append(_invalid(name, json.dumps(call), error))
            elif not isinstance(arguments, dict):
                error = "The arguments are no object."
                invalid.append(_invalid(name, json.dumps(arguments), error))
            else:
                origin = given_id if given_id and given_id not in taken else uuid4().hex
                taken.add(given_id)
                made = tool_call_id(origin)
                calls.append(ToolCall(name=name, args=arguments, id=made, type="tool_call"))
    return calls, invalid


def _parts(call: Any) -> tuple[str, Any, str]:
    """A call's name, its arguments, and its id, which is empty where it has none."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return "", None, ""
    given_id = call.get("id")
    arguments = function.get("arguments", function.get("parameters", {}))
    if isinstance(arguments, str):  # some write them as JSON within JSON
        with suppress(ValueError):  # otherwise refused as no object
            arguments = parse_json(arguments, finite=True)
    return str(function.get("name", "")), arguments, given_id if isinstance(given_id, str) else ""


def _invalid(name: str | None, args: str, error: str) -> InvalidToolCall:
    made = tool_call_id(uuid4().hex)
    return InvalidToolCall(name=name, args=args, id=made, error=error, type="invalid_tool_call")
