"""Tokens -> text, streamed, up to stop strings.

Text comes in whole characters; together it is what the tokenizer decodes all tokens to at once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Any

from fusionrag_integrations.serving.detokenizer import Detokenizer
from fusionrag_integrations.serving.stops import StopMatcher

CALL_TOKENS = (
    *("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]", "<tool_call>", "</tool_call>"),
    *("<|tool_call|>", "<|/tool_call|>", "<|python_tag|>"),
)
"""Tokens by which models mark tool calls: special ones in some tokenizers, plain in others."""


class TextStream:
    """Turns tokens into pieces of text, up to a stop string.

    Stop strings are searched for in the text as it is shown, and in the text with special tokens
    written out, as transformers does: a stop string may contain a special token, or be a part of
    one. Text that may begin a stop string is held back until it is clear whether it does.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str], shown: Sequence[str] = ()) -> None:
        """shown: special tokens that are shown nevertheless, if the tokenizer has them."""
        names = _special_tokens(tokenizer)
        as_shown = {i: name if name in shown else "" for i, name in names.items()}
        self._hidden = {i: len(name) for i, name in names.items() if not as_shown[i]}
        self._shown = Detokenizer(tokenizer, as_shown)
        self._shown_stops = StopMatcher(stop)
        self._written = Detokenizer(tokenizer, names) if stop else None
        self._written_stops = StopMatcher(stop)
        # The index in the text as shown of each character of the other text, from the first one on
        # that may yet belong to a stop string, and that of its next character.
        self._places: list[int] = []
        self._next_place = 0
        self._held = ""  # of the text as shown
        self.stopped = False

    def push(self, token_id: int) -> str:
        """The text that is certain after this token. Sets `stopped` at a stop string."""
        if self.stopped:
            return ""
        shown = self._shown.push(token_id)
        if self._written is None:
            return shown
        end = self._add(shown, self._written.push(token_id), self._hidden.get(token_id, 0))
        return self._take(end if self.stopped else self._certain())

    def flush(self) -> str:
        """The text that was held back, once no more tokens come."""
        if self.stopped:
            return ""
        shown = self._shown.flush()
        if self._written is None:
            return shown
        return self._take(self._add(shown, self._written.flush(), 0))

    def _add(self, shown: str, written: str, hidden: int) -> int:
        """Append pieces to the two texts. Returns how long the one that is shown may become.

        hidden: how many characters at the end of `written` are not shown.
        """
        found = self._written_stops.feed(written)
        if found is not None:  # later bytes can't complete a character before it
            shown += self._shown.flush()
        end = self._shown_stops.feed(shown)
        self.stopped = found is not None or end is not None
        if end is None:
            end = self._shown_stops.length
        self._held += shown
        self._place(len(written) - hidden, hidden)
        if found is not None:
            end = min(end, self._places[found - self._written_stops.length])
        return end

    def _place(self, visible: int, hidden: int) -> None:
        """Record the places of new characters: some visible ones, then some hidden ones."""
        end = self._next_place + visible
        if self._shown.complete:
            # A character whose bytes are separated by special tokens is shown as one.
            end = self._shown_stops.length
        start = end - visible
        beyond = bisect_right(self._places, start)
        self._places[beyond:] = [start] * (len(self._places) - beyond)
        self._places += [*range(start, end), *[end] * hidden]
        self._next_place = end

    def _certain(self) -> int:
        """How many characters of the text as shown can't belong to a stop string."""
        written = self._written_stops
        del self._places[: len(self._places) - (written.length - written.certain)]
        return min([self._shown_stops.certain, *self._places[:1]])

    def _take(self, end: int) -> str:
        """What is held of the first `end` characters of the text as shown."""
        count = max(0, end - (self._shown_stops.length - len(self._held)))
        text, self._held = self._held[:count], self._held[count:]
        return text


def _special_tokens(tokenizer: Any) -> dict[int, str]:
    """Ids and names of the tokens that a tokenizer doesn't show."""
    known = tokenizer.added_tokens_decoder.items()
    return {token_id: token.content for token_id, token in known if token.special}


def text_pieces(tokenizer: Any, token_ids: Iterable[int]) -> list[str]:
    """What each token adds to the text: nothing if it is special, or if later ones complete its
    character.
    """
    stream = TextStream(tokenizer, stop=())
    pieces = [stream.push(token_id) for token_id in token_ids]
    if pieces:
        pieces[-1] += stream.flush()
    return pieces
