"""Whether a string is in the model's chat format already, so that no template may wrap it again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from fusionrag_integrations.prompt.control_tokens import text_tokenizer
from fusionrag_integrations.prompt.messages import Message
from fusionrag_integrations.prompt.template import MARK, apply

_USER: list[Message] = [{"role": "user", "content": MARK}]
_SYSTEM: list[Message] = [
    {"role": "system", "content": MARK},
    {"role": "user", "content": "Who?"},
]


def is_formatted(tokenizer: Any, text: str) -> bool:
    """Whether a text begins a turn as the model's chat template does, and ends one as it does.

    Begins alike: with the same control token, or the same text where there is none.
    """
    end = turn_end(tokenizer)
    if not end or end not in text:
        return False
    text_only = text_tokenizer(tokenizer)
    answered = _rendered(tokenizer, _USER, add_generation_prompt=True)
    # Tokens that begin a text but no turn; some templates begin each turn with their bos token.
    candidates = (text_only.beginning, tokenizer.bos_token)
    beginnings = [token for token in candidates if token and answered.count(token) < 2]
    begun = _without(text, beginnings)
    for messages in (_SYSTEM, _USER):
        opening = _without(_rendered(tokenizer, messages).partition(MARK)[0], beginnings)
        token = text_only.pattern.match(opening)
        if opening and begun.startswith(token[0] if token else opening):
            return True
    return False


def turn_end(tokenizer: Any) -> str:
    """What the chat template ends the user's turn with; empty where there is no template.

    It is a control token, or else all text up to the answer.
    """
    if tokenizer.chat_template is None:
        return ""
    answered = _rendered(tokenizer, _USER, add_generation_prompt=True)
    closing = answered.partition(MARK)[2].strip()
    token = text_tokenizer(tokenizer).pattern.match(closing)
    return token[0] if token else closing


def _rendered(tokenizer: Any, messages: Sequence[Message], **options: Any) -> str:
    """The text of messages; empty where the template refuses them or drops the marked one."""
    try:
        text = apply(tokenizer, messages, **options)
    except TemplateError:
        return ""
    return text if MARK in text else ""


def _without(text: str, beginnings: Sequence[str]) -> str:
    """A text without the tokens that begin every text, and without white space around it."""
    text = text.strip()
    for beginning in beginnings:
        text = text.removeprefix(beginning).lstrip()
    return text
