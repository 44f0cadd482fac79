"""Tokens -> text, token by token, such that no later token changes it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # a token for one byte of a character
_REPLACED = "\ufffd"  # decoded from bytes that are no character, or an incomplete one
_LONGEST = 4  # bytes of a character


class Detokenizer:
    """Tokens -> text that no later token changes.

    How a token is decoded depends on those before it, if only on whether there are any. So the
    last tokens are decoded again together with each new one.
    """

    def __init__(self, tokenizer: Any, special: Mapping[int, str]) -> None:
        """special: what special tokens are written as, which may be nothing."""
        self._tokenizer = tokenizer
        self._special = special
        self._ids: list[int] = []  # the last tokens, of which the newest are new
        self._known = 0  # how many of them are not new
        self._returned = 0  # characters of their text that were returned
        self.complete = True
        """Whether all of the text was returned."""

    def push(self, token_id: int) -> str:
        """The text that is certain now and wasn't returned before."""
        name = self._special.get(token_id)
        if name is not None:
            return self._before_special(token_id) + name if name else ""
        token = self._tokenizer.convert_ids_to_tokens(token_id)
        if token is None:  # the model has more ids than the tokenizer
            return ""
        self._ids.append(token_id)
        # Whether a run of bytes is characters is known only at its end.
        if _BYTE.fullmatch(token):
            self.complete = False
            return ""
        text = self._decoded()
        # Later bytes may complete the last character.
        self.complete = not text.endswith(_REPLACED)
        piece = self._rest(text if self.complete else text[:-1])
        count = len(self._ids) - self._known
        if (piece and self.complete) or count >= _LONGEST:
            self._ids = self._ids[self._known :]
            self._known = count
            self._returned = len(self._decoded()) - (not self.complete)
        return piece

    def flush(self) -> str:
        """The rest of the text, once no more tokens come."""
        self.complete = True
        return self._rest(self._decoded())

    def _before_special(self, token_id: int) -> str:
        """`flush`, before a special token that is written out: it separates bytes."""
        text = self.flush()
        if text:
            self._ids, self._known = [token_id], 1
            self._returned = len(self._decoded())
        return text

    def _rest(self, text: str) -> str:
        piece = text[self._returned :]
        self._returned = max(self._returned, len(text))
        return piece

    def _decoded(self) -> str:
        text: str = self._tokenizer.decode(self._ids, skip_special_tokens=False)
        return text
