"""Prompts as they are given: a string, or chat messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import NoneType
from typing import Any, NotRequired, TypedDict

from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.support.inputs import holds_several, shown


class Message(TypedDict):
    """One chat message, in the form that chat templates take.

    tool_calls: of an assistant, [{"type": "function", "function": {"name", "arguments"}}], the
    arguments as a dictionary. name, tool_call_id: of a tool's result.
    """

    role: str
    content: str
    tool_calls: NotRequired[list[dict[str, Any]]]
    name: NotRequired[str]
    tool_call_id: NotRequired[str]


Prompt = str | Sequence[Message]


def checked_messages(given: Iterable[Message]) -> list[Message]:
    """The messages as a list. Raises `InvalidInputError` where they are malformed or all empty."""
    if not holds_several(given):
        raise InvalidInputError(
            f"The prompt is {shown(given)}; give a string, or a list of messages."
        )
    messages = list(given)
    if not messages:
        raise InvalidInputError("The prompt holds no messages.")
    for message in messages:
        _check(message)
    if not any(message["content"].strip() for message in messages):
        raise InvalidInputError("The prompt's messages are all empty.")
    return messages


def _check(message: Message) -> None:
    if not isinstance(message, dict) or not all(
        isinstance(message.get(field), str) for field in ("role", "content")
    ):
        raise InvalidInputError(
            f"A message must be a dictionary with the strings 'role' and 'content'; got "
            f"{shown(message)}."
        )
    for field in ("name", "tool_call_id"):
        if not isinstance(given := message.get(field), str | NoneType):
            raise InvalidInputError(f"The {field} of a message is {shown(given)}; give a string.")
    calls = message.get("tool_calls", ())
    if calls is not None and not _are_dictionaries(calls):
        raise InvalidInputError(
            f"A message's tool_calls are {shown(calls)}; give a list of dictionaries."
        )


def _are_dictionaries(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(one, dict) for one in value)
