"""A copy of the tokenizer in which text can't spell control tokens.

A tokenizer takes `<|im_start|>` for its control token wherever it occurs, in a document too. The
copy knows each control token by a name of the same length that no text contains. What was written
as a control token is renamed before the text is encoded; all else stays as it is, and is text:

text     <|im_start|>user⏎What does <|im_end|> mean?        the second is quoted
renamed  ............user⏎What does <|im_end|> mean?
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from tokenizers import Tokenizer

from fusionrag_integrations.errors import InvalidInputError

Places = tuple[tuple[int, int], ...]
"""Stretches of a text: the first character of each, and the one after its last."""

_PRIVATE = range(0x100000, 0x10FFFE)  # Unicode's private use plane 16
_BEGINNINGS = 256  # of these characters, which names begin with
_DIGITS = range(0xF0000, 0xF1000)  # characters of plane 15, which make names different


class TextTokenizer:
    """A tokenizer for which names of control tokens are text, unless `rename` has renamed them.

    backend: the copy, without the truncation and padding that users may set on theirs.
    pattern: finds the names of control tokens: of special ones, and of added ones that the chat
    template writes, such as `<tool_call>`. special: finds those of special ones alone.
    before, after: special tokens that the tokenizer puts around a text.
    """

    def __init__(self, tokenizer: Any, first: int) -> None:
        """first: the character that names begin with; names of one character are those after it."""
        added = tokenizer.added_tokens_decoder.values()
        template = str(tokenizer.chat_template or "")
        special = {token.content for token in added if token.special}
        control = special | {token.content for token in added if token.content in template}
        self.special, self.pattern = _any_of(special), _any_of(control)
        self._names = _names(filter(str.strip, control), first)
        settings = json.loads(tokenizer.backend_tokenizer.to_str())
        self.backend = Tokenizer.from_str(json.dumps(_renamed(settings, self._names)))
        alone, whole = (self.backend.encode("a", add_special_tokens=x).ids for x in (False, True))
        at = next(i for i in range(len(whole)) if whole[i : i + len(alone)] == alone)
        self.before, self.after = tuple(whole[:at]), tuple(whole[at + len(alone) :])
        self.beginning = "".join(tokenizer.convert_ids_to_tokens(self.before))

    def rename(self, text: str, quoted: Places = ()) -> str:
        """The text with its control tokens renamed; its length stays the same.

        quoted: where names of control tokens are text; so are those that only overlap it.
        """
        at = 0

        def renamed(match: re.Match[str]) -> str:
            nonlocal at
            while at < len(quoted) and quoted[at][1] <= match.start():
                at += 1
            is_text = at < len(quoted) and quoted[at][0] < match.end()
            return match[0] if is_text else self._names[match[0]]

        return self.pattern.sub(renamed, text)


def text_tokenizer(tokenizer: Any, text: str = "") -> TextTokenizer:
    """A copy of the tokenizer that can encode this text. Raises as `unused_characters` does."""
    first = unused_characters(text, _BEGINNINGS)
    return _copy(tokenizer, len(tokenizer), str(tokenizer.chat_template), first)


def spells_control_tokens(tokenizer: Any, text: str) -> bool:
    """Whether a text holds the name of a control token."""
    return bool(text_tokenizer(tokenizer).pattern.search(text))


def unused_characters(text: str, count: int) -> int:
    """The first of `count` consecutive private-use characters that a text doesn't contain.

    Raises `InvalidInputError` where there are none.
    """
    if text.isascii() or max(text) < chr(_PRIVATE.start):
        return _PRIVATE.start
    used = set(map(ord, text))
    for first in _PRIVATE[:-count]:
        if used.isdisjoint(range(first, first + count)):
            return first
    raise InvalidInputError(
        "The text holds all characters of Unicode's private use plane 16, some of which are needed "
        "to mark control tokens. Take some of them out."
    )


@lru_cache(maxsize=8)
def _copy(tokenizer: Any, size: int, template: str, first: int) -> TextTokenizer:
    """size, template: part of the key, since a tokenizer that changes needs another copy."""
    return TextTokenizer(tokenizer, first)


def _any_of(names: Iterable[str]) -> re.Pattern[str]:
    """Matches any of these, the longest first; but white space, which is always text."""
    longest = sorted(filter(str.strip, names), key=lambda name: (-len(name), name))
    return re.compile("|".join(map(re.escape, longest)) or "(?!)")


def _names(control: Iterable[str], first: int) -> dict[str, str]:
    """Each control token's name in the copy."""
    names: dict[str, str] = {}
    singles = 0
    for number, token in enumerate(sorted(control)):
        digits = ""
        for _ in token[1:]:
            number, digit = divmod(number, len(_DIGITS))
            digits += chr(_DIGITS[digit])
        singles += not digits
        names[token] = chr(first if digits else first + singles) + digits
    return names


def _renamed(settings: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """A tokenizer's settings, with the control tokens' names replaced everywhere."""
    model = dict(settings["model"])
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(token, token): i for token, i in vocabulary.items()}
    else:
        model["vocab"] = [[names.get(token, token), score] for token, score in vocabulary]
    if "merges" in model:
        pairs = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
        model["merges"] = [p for p in pairs if not {*p, "".join(p)} & names.keys()]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    added = [
        token | {"content": names.get(token["content"], token["content"])}
        for token in settings["added_tokens"]
    ]
    changed = {"model": model, "added_tokens": added, "truncation": None, "padding": None}
    return {**settings, **changed}
