"""A prompt -> the text that the model reads: in its own chat template, where it has one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any

from jinja2 import TemplateError

from fusionrag_integrations.errors import InvalidInputError, UnsupportedModelError
from fusionrag_integrations.inputs import check_text, holds_several, shown
from fusionrag_integrations.keys import tool_call_id
from fusionrag_integrations.prompt.control_tokens import Places
from fusionrag_integrations.prompt.formatted import turn_end
from fusionrag_integrations.prompt.template import MARK, apply, apply_quoting, timeless
from fusionrag_integrations.types import Message, Prompt

NEUTRAL = "Answer the question from the context."
BRIEFLY = "Answer in as few words as possible."
CONTEXT = "Context:\n"
SEPARATOR = "\n\n"
"""What chains put between chunks, and ingest between a chunk and its neighbours."""
_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}


@dataclass(frozen=True, slots=True)
class WordedPrompt:
    """A prompt's text. content_stop: the character behind the user's last word, where the
    template's own text ends the prompt. plain: it went through no template, so that the tokenizer
    adds its special tokens. quoted: places where names of control tokens are text.
    """

    text: str
    content_stop: int
    plain: bool
    quoted: Places = ()


def question_prompt(chunks: Sequence[str], question: str, instruction: str = "") -> list[Message]:
    """The messages that ask a question over chunks, where no framework words the prompt.

    instruction: how to answer, on a line before the question.
    """
    context = SEPARATOR.join(chunks)
    asked = f"Question: {question}\nAnswer:"
    if instruction:
        asked = f"{instruction}\n{asked}"
    return [
        {"role": "system", "content": NEUTRAL},
        {"role": "user", "content": f"{CONTEXT}{context}\n\n{asked}"},
    ]


def worded_question(
    tokenizer: Any, chunks: Sequence[str], question: str, instruction: str = ""
) -> Prompt:
    """Like `question_prompt`, as one string where the tokenizer has no template for messages."""
    messages = question_prompt(chunks, question, instruction)
    if tokenizer.chat_template is None:
        return "\n\n".join(message["content"] for message in messages)
    return messages


def ingest_prefix(tokenizer: Any) -> str:
    """The text before every chunk at ingest: what `question_prompt` puts before the first one.

    It is the same on every day, also where the template tells the model which day it is. Chunks
    prefilled without it collapse, because a prompt's first tokens draw attention that has nowhere
    else to go.
    """
    if tokenizer.chat_template is None:
        return f"{tokenizer.bos_token or ''}{NEUTRAL}\n\n{CONTEXT}"
    system: list[Message] = [
        {"role": "system", "content": NEUTRAL},
        {"role": "user", "content": f"{CONTEXT}{MARK}"},
    ]
    plain: list[Message] = [{"role": "user", "content": f"{NEUTRAL}\n\n{CONTEXT}{MARK}"}]
    template = timeless(tokenizer)
    for messages in (system, plain):  # some templates refuse a system message, and some drop it
        failed: TemplateError | None = None
        try:
            text = apply(tokenizer, messages, chat_template=template)
        except TemplateError as error:
            failed = error
            continue
        if NEUTRAL in text and MARK in text:
            return text[: text.index(MARK)]
    raise UnsupportedModelError(
        f"The model's chat template can't be used: {failed or 'it leaves out what messages say'}. "
        "Take the template that the model was published with."
    ) from failed


def ingest_surroundings(tokenizer: Any) -> str:
    """All text that stands around a chunk at ingest, which its KV depends on."""
    return ingest_prefix(tokenizer) + SEPARATOR


def words_tools(tokenizer: Any) -> bool:
    """Whether the tokenizer's chat template has words for tools: whether it tells of one."""
    if tokenizer.chat_template is None:
        return False
    function = {"name": "tool_of_no_use", "description": "None.", "parameters": _NO_PARAMETERS}
    messages: list[Message] = [{"role": "user", "content": NEUTRAL}]
    try:
        text = apply(tokenizer, messages, tools=[{"type": "function", "function": function}])
    except TemplateError:
        return False
    return str(function["name"]) in text


def word(
    tokenizer: Any,
    prompt: Prompt,
    tools: Sequence[Mapping[str, Any]] = (),
    *,
    raw: bool = False,
    on_one_day: bool = False,
) -> WordedPrompt:
    """A prompt's text. A string is one user message where the tokenizer has a chat template.

    A last message of the assistant's is one to continue. tools: that the model is told it may call.
    raw: a string is the whole text, control tokens included. on_one_day: a template that writes the
    date writes that of `ingest_prefix`. Raises `InvalidInputError` for an empty or malformed
    prompt, and for messages or tools where there is no template for them.
    """
    if isinstance(prompt, str):
        if not prompt.strip():
            raise InvalidInputError("The prompt is empty.")
        if raw or tokenizer.chat_template is None:
            if tools:
                raise InvalidInputError(
                    "A model is told of tools by its chat template, and this prompt goes through "
                    "none. Ask by messages, or write the tools into the text."
                )
            return _plain(tokenizer, prompt)
        prompt = [{"role": "user", "content": prompt}]
    if not holds_several(prompt):
        raise InvalidInputError(
            f"The prompt is {shown(prompt)}; give a string, or a list of messages."
        )
    messages = _checked(list(prompt))
    if (tools or _of_tools(messages)) and not words_tools(tokenizer):
        raise InvalidInputError(
            "This model's chat template has no words for tools. Ask without tools, their calls and "
            "results, or take a model whose template knows them."
        )
    if tokenizer.chat_template is None:
        raise InvalidInputError(
            "This model's tokenizer has no chat template, so messages can't be worded for it. "
            "Give the prompt as one string, or a tokenizer with a template."
        )
    continued = messages[-1]["role"] == "assistant" and "tool_calls" not in messages[-1]
    options: dict[str, Any] = {"chat_template": timeless(tokenizer)} if on_one_day else {}
    options["continue_final_message" if continued else "add_generation_prompt"] = True
    schemas = [dict(tool) for tool in tools]
    try:
        text, quoted = _apply_to_any_ids(tokenizer, messages, schemas, **options)
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
    asked = messages[-2] if continued and messages[1:] else messages[-1]
    last = asked["content"].strip()
    at = text.rfind(last)
    stop = at + len(last) if at >= 0 else len(text)
    return WordedPrompt(_encodable(text), stop, plain=False, quoted=quoted)


def _plain(tokenizer: Any, text: str) -> WordedPrompt:
    """A text as it is; where it has turns, the last one that ends is the user's."""
    end = turn_end(tokenizer)
    stop = text.rfind(end) if end else -1
    return WordedPrompt(_encodable(text), stop if stop >= 0 else len(text), plain=True)


def _of_tools(messages: Sequence[Message]) -> bool:
    """Whether messages hold calls of tools or their results, which templates may drop silently."""
    return any(message["role"] == "tool" or "tool_calls" in message for message in messages)


def _apply_to_any_ids(
    tokenizer: Any, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], **options: Any
) -> tuple[str, Places]:
    """As `apply_quoting`. Tool calls whose ids the template refuses get ones that fit."""
    try:
        return apply_quoting(tokenizer, messages, tools, **options)
    except TemplateError:
        fitting = _with_fitting_ids(messages)
        if fitting == messages:
            raise
    return apply_quoting(tokenizer, fitting, tools, **options)


def _with_fitting_ids(messages: Sequence[Message]) -> list[Message]:
    """Messages whose tool calls and results have ids of nine letters and digits, as Mistral's.

    A result keeps its call's id; one without an id is of the next call, in order.
    """
    fitting: list[Message] = []
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
        fitting.append(message)
    return fitting


def _encodable(text: str) -> str:
    check_text("The prompt", text)
    return text


def _checked(messages: list[Message]) -> list[Message]:
    if not messages:
        raise InvalidInputError("The prompt holds no messages.")
    for message in messages:
        if not isinstance(message, dict) or not all(
            isinstance(message.get(field), str) for field in ("role", "content")
        ):
            raise InvalidInputError(
                f"A message must be a dictionary with the strings 'role' and 'content'; got "
                f"{shown(message)}."
            )
        for field in ("name", "tool_call_id"):
            if not isinstance(given := message.get(field), str | NoneType):
                raise InvalidInputError(
                    f"The {field} of a message is {shown(given)}; give a string."
                )
        calls = message.get("tool_calls", ())
        if calls is not None and not _are_dictionaries(calls):
            raise InvalidInputError(
                f"A message's tool_calls are {shown(calls)}; give a list of dictionaries."
            )
    if not any(message["content"].strip() for message in messages):
        raise InvalidInputError("The prompt's messages are all empty.")
    return messages


def _are_dictionaries(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(one, dict) for one in value)
