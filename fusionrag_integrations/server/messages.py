"""OpenAI's chat messages as this package's."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.prompt.messages import Message
from fusionrag_integrations.server.errors import ApiError
from fusionrag_integrations.support.inputs import parse_json, shown

_ROLES = {"developer": "system"}  # which most chat templates don't know


class CalledFunction(BaseModel):
    """arguments: as JSON."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    arguments: str


class Call(BaseModel):
    """A call that the model made."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction

    def template_call(self) -> dict[str, Any]:
        """As chat templates take it. Raises `ApiError` (400) for arguments that are no object."""
        try:
            arguments = parse_json(self.function.arguments or "{}", finite=True)
        except ValueError:
            arguments = None
        if not isinstance(arguments, dict):
            message = (
                f"The arguments of a call of {self.function.name} are "
                f"{shown(self.function.arguments)}; give a JSON object as a string."
            )
            raise ApiError(HTTPStatus.BAD_REQUEST, message, "messages")
        named = {} if self.id is None else {"id": self.id}
        function = {"name": self.function.name, "arguments": arguments}
        return {"type": "function", **named, "function": function}


class ChatMessage(BaseModel):
    """A message. Content is a string, or parts of type text; null where a message holds calls."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] = ""
    name: str | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        """What answers hold and nobody gave: null, and no annotations."""
        if not isinstance(given, dict):
            return given
        return {k: v for k, v in given.items() if v is not None and (k, v) != ("annotations", [])}

    @property
    def text(self) -> str:
        """Raises `ApiError` (400) for content other than text."""
        if isinstance(self.content, str):
            return self.content
        return "".join(_text(part) for part in self.content)


def to_messages(given: Sequence[ChatMessage]) -> list[Message]:
    """Messages as chat templates take them; a tool's result gets the name that it was called by.

    Raises `ApiError` (400) for content other than text and for malformed calls.
    """
    messages: list[Message] = []
    names: dict[str, str] = {}
    for one in given:
        message: Message = {"role": _ROLES.get(one.role, one.role), "content": one.text}
        if one.tool_calls:
            message["tool_calls"] = [call.template_call() for call in one.tool_calls]
            names |= {call.id or "": call.function.name for call in one.tool_calls}
        if one.tool_call_id is not None:
            message["tool_call_id"] = one.tool_call_id
        if one.role == "tool":
            message["name"] = one.name or names.get(one.tool_call_id or "", "")
        elif one.name is not None:
            message["name"] = one.name
        messages.append(message)
    if not messages:
        raise InvalidInputError("messages is empty; give at least one.")
    return messages


def _text(part: dict[str, Any]) -> str:
    if part.get("type") == "text" and isinstance(text := part.get("text"), str):
        return text
    message = f"A message holds {shown(part.get('type'))}; this server reads text alone."
    raise ApiError(HTTPStatus.BAD_REQUEST, message, "messages", "unsupported_content")
