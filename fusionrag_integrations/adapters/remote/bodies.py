"""Prompts and settings as the bodies of requests, in OpenAI's form with the server's own fields."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from fusionrag_integrations.prompt.messages import Message, Prompt, checked_messages
from fusionrag_integrations.serving.settings import AnswerSettings

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_TOLD_APART = ("handles", "tools")  # settings that a body has under other names, or not always


def answer_request(prompt: Prompt, settings: AnswerSettings) -> tuple[str, dict[str, Any]]:
    """Path and body of the request for a prompt's answer as a stream.

    Settings that are None are left out: the server's default is the same.
    """
    body = {
        field.name: value
        for field in fields(settings)
        if field.name not in _TOLD_APART and (value := getattr(settings, field.name)) is not None
    }
    body["chunk_ids"] = [handle.chunk_id for handle in settings.handles]
    path, asked = prompt_fields(prompt, settings.tools)
    if path == CHAT:
        body["parse_calls"] = False  # components read them from the text, as over an engine
    return path, body | asked | {"stream": True}


def prompt_fields(prompt: Prompt, tools: Sequence[Mapping[str, Any]]) -> tuple[str, dict[str, Any]]:
    """Where a prompt is answered, and it as fields of a body.

    Raises `InvalidInputError` for malformed messages.
    """
    given: dict[str, Any] = {"tools": list(tools)} if tools else {}
    if isinstance(prompt, str):
        return COMPLETIONS, given | {"prompt": prompt}
    return CHAT, given | {"messages": [_message(one) for one in checked_messages(prompt)]}


def _message(message: Message) -> dict[str, Any]:
    """A message whose calls have their arguments as JSON, as OpenAI's have."""
    told = {name: value for name, value in message.items() if value not in (None, [])}
    calls = message.get("tool_calls")
    if calls:
        told["tool_calls"] = [{**call, "function": _function(call)} for call in calls]
    return told


def _function(call: Mapping[str, Any]) -> dict[str, Any]:
    function = dict(call.get("function", {}))
    if not isinstance(function.get("arguments", ""), str):
        function["arguments"] = json.dumps(function["arguments"])
    return function
