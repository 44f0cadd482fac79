"""Applying a model's chat template, so that control tokens are the template's own alone.

What messages and tools contain is text, even where it spells a control token: such a name passes
through the template between two marks, by which it is found again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from fusionrag_integrations.prompt.control_tokens import (
    Places,
    TextTokenizer,
    text_tokenizer,
    unused_characters,
)
from fusionrag_integrations.prompt.messages import Message

MARK = "\u2063text\u2063"  # a placeholder for a text while a template is rendered

# 26 July 2024, midnight, in English: the date that Llama's template writes without a clock.
_DAY = {
    **{"A": "Friday", "a": "Fri", "w": "5", "u": "5", "d": "26", "e": "26", "j": "208"},
    **{"B": "July", "b": "Jul", "h": "Jul", "m": "07", "Y": "2024", "G": "2024", "y": "24"},
    **{"g": "24", "U": "29", "W": "30", "V": "30", "C": "20", "H": "00", "k": "0", "I": "12"},
    **{"l": "12", "M": "00", "S": "00", "f": "000000", "p": "AM", "P": "am", "s": "1721952000"},
    **{"z": "", "Z": "", "c": "Fri Jul 26 00:00:00 2024", "D": "07/26/24", "x": "07/26/24"},
    **{"F": "2024-07-26", "X": "00:00:00", "T": "00:00:00", "R": "00:00", "r": "12:00:00 AM"},
}
_CLOCK = "strftime_now"  # the function by which templates ask for the time; a macro replaces it
_FIXED_CLOCK = (
    f"{{% macro {_CLOCK}(format) %}}{{% set day = namespace(text=format) %}}"
    f"{{% for code, value in {_DAY}.items() %}}"
    "{% set day.text = day.text | replace('%' ~ code, value) "
    "| replace('%-' ~ code, value.lstrip('0') or '0') %}"
    "{% endfor %}{{ day.text }}{% endmacro %}\n"
)


def apply(tokenizer: Any, messages: Sequence[Message], **options: Any) -> str:
    """The text of messages.

    Raises jinja2's `TemplateError`, whatever went wrong in the template, and `ValueError` where the
    text doesn't contain the last message, which is to be continued.
    """
    try:
        text: str = tokenizer.apply_chat_template(list(messages), tokenize=False, **options)
    except TemplateError:
        raise
    except Exception as error:  # a template is a program, and may fail in any way
        if isinstance(error, ValueError) and options.get("continue_final_message"):
            raise
        raise TemplateError(f"{type(error).__name__}: {error}") from error
    return text


def with_fixed_clock(tokenizer: Any) -> str:
    """The chat template, for which the time is always the same."""
    template = str(tokenizer.get_chat_template())
    return _FIXED_CLOCK + template if _CLOCK in template else template


def apply_quoting(
    tokenizer: Any,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] = (),
    **options: Any,
) -> tuple[str, Places]:
    """The same as `apply`, and the places of control tokens' names that are text.

    In the assistant's messages only special tokens are text: others, such as `<think>`, are tokens.
    """
    names = text_tokenizer(tokenizer)
    strings = "\n".join(_strings([messages, tools]))
    if not names.pattern.search(strings):
        return apply(tokenizer, messages, tools=list(tools) or None, **options), ()
    unused = unused_characters(strings, 2)
    begin, end = chr(unused), chr(unused + 1)
    marked = [_marked_message(message, names, begin, end) for message in messages]
    marked_tools = _marked(tools, names.pattern, begin, end)
    text = apply(tokenizer, marked, tools=marked_tools or None, **options)
    pieces: list[str] = []
    quoted: list[tuple[int, int]] = []
    at = length = 0
    # A template may split a text at a name, which leaves a mark on either side.
    for match in re.finditer(f"{begin}({names.pattern.pattern}){end}|[{begin}{end}]", text):
        name = match[1] or ""
        pieces += text[at : match.start()], name
        length += match.start() - at
        if name:
            quoted.append((length, length + len(name)))
        length += len(name)
        at = match.end()
    return "".join([*pieces, text[at:]]), tuple(quoted)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _strings(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _strings(one)


def _marked_message(message: Message, names: TextTokenizer, begin: str, end: str) -> Message:
    in_content = names.special if message["role"] == "assistant" else names.pattern
    marked: Message = _marked(message, names.pattern, begin, end)
    content = _marked(message["content"], in_content, begin, end)
    return {**marked, "role": message["role"], "content": content}


def _marked(value: Any, names: re.Pattern[str], begin: str, end: str) -> Any:
    """A value whose strings have marks around these names."""
    if isinstance(value, str):
        return names.sub(lambda match: f"{begin}{match[0]}{end}", value)
    if isinstance(value, Mapping):
        return {key: _marked(one, names, begin, end) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_marked(one, names, begin, end) for one in value]
    return value
