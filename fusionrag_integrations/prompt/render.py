"""A prompt -> the text that the model reads: in its own chat template, where it has one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from fusionrag_integrations.documents.keys import tool_call_id
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.prompt.control_tokens import Places
from fusionrag_integrations.prompt.formatted import turn_end
from fusionrag_integrations.prompt.messages import Message, Prompt, checked_messages
from fusionrag_integrations.prompt.template import apply, apply_quoting, with_fixed_clock
from fusionrag_integrations.support.inputs import check_text


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """A prompt's text.

    content_stop: the character after the user's text, where the template's own text ends the
    prompt. plain: whether it went through no template, so that the tokenizer adds its special
    tokens. quoted: places where names of control tokens are text.
    """

    text: str
    content_stop: int
    plain: bool
    quoted: Places = ()


def supports_tools(tokenizer: Any) -> bool:
    """Whether the tokenizer's chat template renders tools."""
    if tokenizer.chat_template is None:
        return False
    parameters: dict[str, Any] = {"type": "object", "properties": {}}
    function = {"name": "tool_of_no_use", "description": "None.", "parameters": parameters}
    messages: list[Message] = [{"role": "user", "content": "Which tools are there?"}]
    try:
        text = apply(tokenizer, messages, tools=[{"type": "function", "function": function}])
    except TemplateError:
        return False
    return str(function["name"]) in text


def render(
    tokenizer: Any,
    prompt: Prompt,
    tools: Sequence[Mapping[str, Any]] = (),
    *,
    raw: bool = False,
    on_one_day: bool = False,
) -> RenderedPrompt:
    """A prompt's text. A string is one user message where the tokenizer has a chat template.

    If the last message is the assistant's, the answer continues it. tools: JSON schemas of those
    that the model may call. raw: a string is the whole text, control tokens included. on_one_day:
    a template that writes the date writes that of `ingest_prefix`. Raises `InvalidInputError` for
    an empty or malformed prompt, and for messages or tools where there is no template for them.
    """
    if isinstance(prompt, str):
        if not prompt.strip():
            raise InvalidInputError("The prompt is empty.")
        if raw or tokenizer.chat_template is None:
            if tools:
                raise InvalidInputError(
                    "Tools are given to a model by its chat template, and this prompt goes through "
                    "none. Ask by messages, or write the tools into the text."
                )
            return _render_plain(tokenizer, prompt)
        prompt = [{"role": "user", "content": prompt}]
    messages = checked_messages(prompt)
    if (tools or _of_tools(messages)) and not supports_tools(tokenizer):
        raise InvalidInputError(
            "This model's chat template doesn't support tools. Ask without tools, their calls and "
            "results, or take a model whose template knows them."
        )
    if tokenizer.chat_template is None:
        raise InvalidInputError(
            "This model's tokenizer has no chat template, so messages can't be rendered for it. "
            "Give the prompt as one string, or a tokenizer with a template."
        )
    options = {"chat_template": with_fixed_clock(tokenizer)} if on_one_day else {}
    return _render_messages(tokenizer, messages, [dict(tool) for tool in tools], options)


def _render_plain(tokenizer: Any, text: str) -> RenderedPrompt:
    """A text as it is; if it has turns, the last one that ends is taken for the user's."""
    check_text("The prompt", text)
    end = turn_end(tokenizer)
    stop = text.rfind(end) if end else -1
    return RenderedPrompt(text, stop if stop >= 0 else len(text), plain=True)


def _render_messages(
    tokenizer: Any,
    messages: list[Message],
    tools: Sequence[Mapping[str, Any]],
    options: Mapping[str, Any],
) -> RenderedPrompt:
    continued = messages[-1]["role"] == "assistant" and "tool_calls" not in messages[-1]
    ending = {"continue_final_message" if continued else "add_generation_prompt": True}
    try:
        text, quoted = _apply_to_any_ids(tokenizer, messages, tools, **options, **ending)
    except TemplateError as error:
        raise InvalidInputError(
            f"The model's chat template refuses these messages: {error}. Their roles are "
            f"{', '.join(message['role'] for message in messages)}."
        ) from error
    except RecursionError as error:
        raise InvalidInputError(
            "Messages or tools are nested too deep; give some with less in them."
        ) from error
    except ValueError as error:
        if not continued:
            raise
        raise InvalidInputError(
            "The model's chat template changes the assistant's last message, so it can't be "
            "continued. End the messages with the user's, or give the whole text with raw=True."
        ) from error
    check_text("The prompt", text)
    asked = messages[-2] if continued and messages[1:] else messages[-1]
    content = asked["content"].strip()
    start = text.rfind(content)
    stop = start + len(content) if start >= 0 else len(text)
    return RenderedPrompt(text, stop, plain=False, quoted=quoted)


def _of_tools(messages: Sequence[Message]) -> bool:
    """Whether messages hold calls of tools or their results, which templates may drop silently."""
    return any(message["role"] == "tool" or "tool_calls" in message for message in messages)


def _apply_to_any_ids(
    tokenizer: Any, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], **options: Any
) -> tuple[str, Places]:
    """Like `apply_quoting`; tool calls whose ids the template refuses get ones that it accepts."""
    try:
        return apply_quoting(tokenizer, messages, tools, **options)
    except TemplateError:
        accepted = _with_accepted_ids(messages)
        if accepted == messages:
            raise
    return apply_quoting(tokenizer, accepted, tools, **options)


def _with_accepted_ids(messages: Sequence[Message]) -> list[Message]:
    """Messages whose tool calls and results have ids of nine letters and digits, as Mistral's.

    A result has its call's id; one without an id is of the next call, in order.
    """
    accepted: list[Message] = []
    waiting: Iterator[str] = iter(())
    for number, message in enumerate(messages):
        if calls := message.get("tool_calls"):
            ids = [
                tool_call_id(call.get("id") or f"{number}.{place}")
                for place, call in enumerate(calls)
            ]
            waiting = iter(ids)
            named = [dict(call) | {"id": i} for call, i in zip(calls, ids, strict=True)]
            message = message | {"tool_calls": named}
        elif message["role"] == "tool":
            given = message.get("tool_call_id")
            found = tool_call_id(given) if given else next(waiting, "")
            message = message | {"tool_call_id": found}
        accepted.append(message)
    return accepted
