"""Answers in OpenAI's form: whole, or in chunks."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from uuid import uuid4

from fusionrag_integrations.adapters.tool_calls import ParsedOutput, PlainText, parse_output
from fusionrag_integrations.serving.answer import Answer

Piece = dict[str, Any]


class Form(ABC):
    """The objects of one answer; their names and the time are the same in all of them."""

    prefix: str
    whole_name: str
    chunk_name: str

    def __init__(self, model: str, include_usage: bool) -> None:
        """include_usage: whether chunks count tokens, all but the last of them none."""
        self._named = {
            "id": f"{self.prefix}-{uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }
        self._include_usage = include_usage

    @abstractmethod
    def choice(self, answer: Answer) -> Piece:
        """All of an answer."""

    @abstractmethod
    def begin(self) -> Iterator[Piece]:
        """Choices of chunks before the first piece."""

    @abstractmethod
    def add(self, piece: str) -> Iterator[Piece]:
        """Choices of chunks for a piece of the answer's text."""

    @abstractmethod
    def end(self, answer: Answer) -> Iterator[Piece]:
        """Choices of the last chunks."""

    def whole(self, answer: Answer) -> dict[str, Any]:
        """The answer to a request without `stream`."""
        return {
            **self._named,
            "object": self.whole_name,
            "choices": [{"index": 0, "logprobs": None, **self.choice(answer)}],
            "usage": usage(answer),
            "fusionrag": answer.report(),
        }

    def chunk(self, choice: Piece) -> dict[str, Any]:
        """A part of the answer to a request with `stream`."""
        choices = [{"index": 0, "logprobs": None, "finish_reason": None, **choice}]
        return self._chunk() | {"choices": choices}

    def last(self, answer: Answer) -> Iterator[dict[str, Any]]:
        """The chunks after the last piece."""
        *before, final = (self.chunk(choice) for choice in self.end(answer))
        yield from before
        yield final | {"fusionrag": answer.report()}
        if self._include_usage:
            yield self._chunk() | {"choices": [], "usage": usage(answer)}

    def _chunk(self) -> dict[str, Any]:
        counted = {"usage": None} if self._include_usage else {}
        return {**self._named, "object": self.chunk_name, **counted}


class TextForm(Form):
    """A completion of a text."""

    prefix = "cmpl"
    whole_name = chunk_name = "text_completion"

    def choice(self, answer: Answer) -> Piece:
        return {"text": answer.text, "finish_reason": answer.finish_reason}

    def begin(self) -> Iterator[Piece]:
        yield from ()

    def add(self, piece: str) -> Iterator[Piece]:
        yield {"text": piece}

    def end(self, answer: Answer) -> Iterator[Piece]:
        yield {"text": "", "finish_reason": answer.finish_reason}


class ChatForm(Form):
    """An assistant's message, with the tools that it calls."""

    prefix = "chatcmpl"
    whole_name = "chat.completion"
    chunk_name = "chat.completion.chunk"

    def __init__(self, model: str, include_usage: bool, tools: Sequence[Mapping[str, Any]]) -> None:
        """tools: schemas of those that the model may call."""
        super().__init__(model, include_usage)
        self._plain = PlainText(tools)

    def choice(self, answer: Answer) -> Piece:
        parsed = parse_output(answer.text, self._plain.tools)
        calls = _calls(parsed)
        message: dict[str, Any] = {"role": "assistant", "content": parsed.text, "refusal": None}
        if calls:
            message |= {"content": parsed.text or None, "tool_calls": calls}
        return {"message": message, "finish_reason": _reason(answer, calls)}

    def begin(self) -> Iterator[Piece]:
        yield {"delta": {"role": "assistant", "content": ""}}

    def add(self, piece: str) -> Iterator[Piece]:
        if text := self._plain.push(piece):
            yield {"delta": {"content": text}}

    def end(self, answer: Answer) -> Iterator[Piece]:
        parsed = parse_output(answer.text, self._plain.tools)
        if rest := parsed.text[self._plain.length :]:
            yield {"delta": {"content": rest}}
        calls = _calls(parsed)
        for index, call in enumerate(calls):
            yield {"delta": {"tool_calls": [{"index": index, **call}]}}
        yield {"delta": {}, "finish_reason": _reason(answer, calls)}


def usage(answer: Answer) -> dict[str, Any]:
    """Counts of tokens. cached_tokens: whose KV wasn't computed for this answer."""
    counts = answer.usage
    return {
        "prompt_tokens": counts.prompt_tokens,
        "completion_tokens": counts.completion_tokens,
        "total_tokens": counts.prompt_tokens + counts.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": counts.reused_tokens},
    }


def _calls(parsed: ParsedOutput) -> list[dict[str, Any]]:
    """Calls of tools; where a call can't be made, the client gets it as the model wrote it."""
    made = [(call, json.dumps(call["args"])) for call in parsed.calls]
    others = [(invalid, invalid["args"] or "") for invalid in parsed.invalid]
    return [
        {
            "id": call["id"],
            "type": "function",
            "function": {"name": call["name"] or "", "arguments": arguments},
        }
        for call, arguments in [*made, *others]
    ]


def _reason(answer: Answer, calls: Sequence[object]) -> str:
    return "tool_calls" if calls else answer.finish_reason
