"""The bodies of requests for answers, checked: OpenAI's fields, and this package's settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from http import HTTPStatus
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, model_validator

from fusionrag_integrations.documents.handles import KVHandle
from fusionrag_integrations.prompt.messages import Prompt
from fusionrag_integrations.server.errors import ApiError
from fusionrag_integrations.server.messages import ChatMessage, to_messages
from fusionrag_integrations.server.openai_fields import known_fields
from fusionrag_integrations.serving.settings import AnswerSettings
from fusionrag_integrations.support.inputs import shown


class Body(BaseModel):
    """A body in which every field is known. Values aren't converted: "1" is no number."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Function(BaseModel):
    """What a tool is, as the chat template gets it."""

    model_config = ConfigDict(extra="allow", strict=True)

    name: str

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.model_extra or {}).get("strict"):
            message = "strict is true for a tool; this server can't hold a model to a schema."
            raise ApiError(HTTPStatus.BAD_REQUEST, message, "tools", "unsupported_parameter")
        return self


class Tool(Body):
    """A tool that the model may call."""

    type: Literal["function"]
    function: Function

    def schema_(self) -> dict[str, Any]:
        """As settings have it."""
        function = {k: v for k, v in self.function.model_dump().items() if k != "strict"}
        return {"type": "function", "function": function}


class StreamOptions(Body):
    """include_usage: whether a last chunk counts tokens. The other one changes nothing here."""

    include_usage: bool = False
    include_obfuscation: bool = False


class AnswerBody(Body):
    """What both ways to ask have in common. Defaults are those of `AnswerSettings`."""

    asked_for: ClassVar[str]  # in messages

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    repetition_penalty: float | None = None
    kv: Literal["fused", "isolated", "none"] | None = None
    corrected: bool | None = None
    selector: str | None = None
    ratio: float | None = None
    scopes: list[str] | None = None
    chunk_ids: list[str] | None = None
    break_even: bool | None = None
    raw: bool | None = None
    tools: list[Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        return known_fields(cls.asked_for, given, cls.model_fields) if _is_object(given) else given

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.stream_options is not None and not self.stream:
            message = "stream_options are given without stream."
            raise ApiError(HTTPStatus.BAD_REQUEST, message, "stream_options")
        return self

    @model_validator(mode="after")
    def _check_choice(self) -> Self:
        if self.tool_choice in (None, "none") or (self.tool_choice == "auto" and self.tools):
            return self
        message = (
            "tool_choice is given without tools."
            if not self.tools
            else f"tool_choice is {shown(self.tool_choice)}; a call can't be forced here. Give "
            "'auto' or 'none', and only the tool that is wanted."
        )
        raise ApiError(HTTPStatus.BAD_REQUEST, message, "tool_choice", "unsupported_parameter")

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk that counts tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    def prompt_given(self) -> Prompt:
        """What the engine is asked."""
        raise NotImplementedError

    def tools_given(self) -> tuple[dict[str, Any], ...]:
        """Schemas of the tools that the model may call."""
        if self.tool_choice == "none":
            return ()
        return tuple(tool.schema_() for tool in self.tools or ())

    def settings(self, scopes: Sequence[str] | None, handles: Sequence[KVHandle]) -> AnswerSettings:
        """How to answer. scopes: those that the request may use.

        Raises `InvalidInputError` for a value that no setting may have.
        """
        given = {name: getattr(self, name) for name in _SETTINGS & type(self).model_fields.keys()}
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        special = {
            "stop": tuple(stop),
            "scopes": None if scopes is None else tuple(scopes),
            "handles": tuple(handles),
            "tools": self.tools_given(),
        }
        return AnswerSettings(**{k: v for k, v in given.items() if v is not None} | special)


class ChatBody(AnswerBody):
    """A request for a chat completion.

    parse_calls: whether calls in the model's text become `tool_calls`; otherwise they stay in it.
    """

    asked_for = "A chat completion"

    messages: list[ChatMessage]
    parse_calls: bool = True

    def prompt_given(self) -> Prompt:
        return to_messages(self.messages)


class CompletionBody(AnswerBody):
    """A request for a completion of a text."""

    asked_for = "A completion"

    prompt: str | list[str]

    def prompt_given(self) -> Prompt:
        if isinstance(self.prompt, str):
            return self.prompt
        if len(self.prompt) != 1:
            message = f"prompt is a list of {len(self.prompt)}; ask one at a time."
            raise ApiError(HTTPStatus.BAD_REQUEST, message, "prompt", "unsupported_parameter")
        return self.prompt[0]


_MADE = {"handles", "scopes", "stop", "tools"}  # by `AnswerBody.settings`
_SETTINGS = {field.name for field in fields(AnswerSettings)} - _MADE


def _is_object(given: Any) -> bool:
    return isinstance(given, dict)
