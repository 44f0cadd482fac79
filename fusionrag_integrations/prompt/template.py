"""A model's chat template, rendered.

Only the template's own words are control tokens. What messages and tools bring along is text, even
where it spells one: it goes through the template between two marks, by which it is found again.
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
from fusionrag_integrations.types import Message

MARK = "\u2063text\u2063"  # stands for a text while a template is rendered

# 26 July 2024, midnight, in English: the day that Llama's template writes where it knows none.
_DAY = {
    **{"A": "Friday", "a": "Fri", "w": "5", "u": "5", "d": "26", "e": "26", "j": "208"},
    **{"B": "July", "b": "Jul", "h": "Jul", "m": "07", "Y": "2024", "G": "2024", "y": "24"},
    **{"g": "24", "U": "29", "W": "30", "V": "30", "C": "20", "H": "00", "k": "0", "I": "12"},
    **{"l": "12", "M": "00", "S": "00", "f": "000000", "p": "AM", "P": "am", "s": "1721952000"},
    **{"z": "", "Z": "", "c": "Fri Jul 26 00:00:00 2024", "D": "07/26/24", "x": "07/26/24"},
    **{"F": "2024-07-26", "X": "00:00:00", "T": "00:00:00", "R": "00:00", "r": "12:00:00 AM"},
}
_CLOCK = "strftime_now"  # by which templates ask for the time; a macro of that name hides it
_FIXED_CLOCK = (
    f"{{% macro {_CLOCK}(format) %}}{{% set day = namespace(told=format) %}}"
    f"{{% for code, told in {_DAY}.items() %}}"
    "{% set day.told = day.told | replace('%' ~ code, told) "
    "| replace('%-' ~ code, told.lstrip('0') or '0') %}"
    "{% endfor %}{{ day.told }}{% endmacro %}\n"
)


def apply(tokenizer: Any, messages: Sequence[Message], **options: Any) -> str:
    """The text of messages.

    Raises jinja2's `TemplateError`, whatever went wrong in the template, and `ValueError` where a
    last message that is to be continued doesn't stand in the text.
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


def timeless(tokenizer: Any) -> str:
    """The chat template as on one day and hour for ever, whatever it asks the clock."""
    template = str(tokenizer.get_chat_template())
    return _FIXED_CLOCK + template if _CLOCK in template else template


def apply_quoting(
    tokenizer: Any,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] = (),
    **options: Any,
) -> tuple[str, Places]:
    """The same as `apply`, and where names of control tokens stand that are text.

    A model's own messages may hold what isn't a special token, such as `<think>`, as tokens.
    """
    own = text_tokenizer(tokenizer)
    strings = "\n".join(_strings([messages, tools]))
    if not own.pattern.search(strings):
        return apply(tokenizer, messages, tools=list(tools) or None, **options), ()
    unused = unused_characters(strings, 2)
    begin, end = chr(unused), chr(unused + 1)
    marked = [_marked_message(message, own, begin, end) for message in messages]
    marked_tools = _marked(tools, own.pattern, begin, end)
    text = apply(tokenizer, marked, tools=marked_tools or None, **options)
    pieces: list[str] = []
    quoted: list[tuple[int, int]] = []
    at = length = 0
    # A template may split a text at a name, which leaves a mark on either side.
    for match in re.finditer(f"{begin}({own.pattern.pattern}){end}|[{begin}{end}]", text):
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


def _marked_message(message: Message, own: TextTokenizer, begin: str, end: str) -> Message:
    said = own.special if message["role"] == "assistant" else own.pattern
    marked: Message = _marked(message, own.pattern, begin, end)
    content = _marked(message["content"], said, begin, end)
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
