"""Warm cache -> tokens, streamed, with sampling and stops.

What processes logits and ends answers is transformers' own. Text comes out as whole characters, and
is together what the tokenizer makes of all tokens at once.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StoppingCriteriaList

from fusionrag_integrations.model import Generation, StepFunction
from fusionrag_integrations.stops import StopMatcher
from fusionrag_integrations.types import FinishReason

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # a token that is a byte of a character that has none
CALL_TOKENS = (
    *("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]", "<tool_call>", "</tool_call>"),
    *("<|tool_call|>", "<|/tool_call|>", "<|python_tag|>"),
)
"""Tokens by which models mark calls of tools: special ones in some tokenizers, plain in others."""

_REPLACED = "\ufffd"  # what bytes are decoded to that are no character, or not yet
_LONGEST = 4  # bytes of a character


@dataclass(frozen=True, slots=True)
class DecodedToken:
    """One generated token. `finished` is set on the last."""

    token_id: int
    finished: FinishReason | None


def decode_tokens(
    logits: torch.Tensor, step: StepFunction, generation: Generation, seed: int | None = None
) -> Iterator[DecodedToken]:
    """Generate from the prompt's last logits [V]; `step` appends a token and gives the next.

    Ends as `generation` says. seed: makes sampling repeatable.
    """
    prompt = generation.token_ids
    length = prompt.shape[1]
    ids = prompt.new_empty(1, length + generation.max_tokens)
    ids[:, :length] = prompt
    sampler = torch.Generator(logits.device)
    if seed is None:
        sampler.seed()
    else:
        sampler.manual_seed(seed)
    while True:
        scores = _scores(ids[:, :length], logits, generation)
        if generation.sampled:
            token = torch.multinomial(scores.softmax(-1), 1, generator=sampler)
        else:
            token = scores.argmax(-1, keepdim=True)
        ids[:, length] = token[:, 0]
        length += 1
        finished: FinishReason | None = None
        if _reached(generation.ends, ids[:, :length], scores):
            finished = "stop"
        elif _reached(generation.limits, ids[:, :length], scores):
            finished = "length"
        token_id = int(token.item())
        yield DecodedToken(token_id, finished)
        if finished:
            return
        logits = step(token_id)


@torch.no_grad()
def _scores(ids: torch.Tensor, logits: torch.Tensor, generation: Generation) -> torch.Tensor:
    """What the processors make of logits [V], which stay as they are; float32 [1, V]."""
    if not generation.processors:
        return logits[None].float()
    scores: torch.Tensor = generation.processors(ids, logits[None].to(torch.float32, copy=True))
    return scores


def _reached(criteria: StoppingCriteriaList, ids: torch.Tensor, scores: torch.Tensor) -> bool:
    return len(criteria) > 0 and bool(criteria(ids, scores).all())


class TextStream:
    """Turns tokens into text pieces and watches for stop strings.

    They are looked for in the text as it is shown, and in the text with special tokens written out,
    as transformers does: one may hold a special token, or be a part of one. Text that may be the
    beginning of a stop string is held back until it is clear whether it is.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str], shown: Sequence[str] = ()) -> None:
        """shown: special tokens that are shown all the same, where the tokenizer has them."""
        names = _special_tokens(tokenizer)
        as_shown = {i: name if name in shown else "" for i, name in names.items()}
        self._hidden = {i: len(name) for i, name in names.items() if not as_shown[i]}
        self._shown = _Detokenizer(tokenizer, as_shown)
        self._shown_stops = StopMatcher(stop)
        self._written = _Detokenizer(tokenizer, names) if stop else None
        self._written_stops = StopMatcher(stop)
        # Where in the text as shown the characters of the other stand, from the first one on that
        # a stop string may hold yet, and where its next one will.
        self._places: list[int] = []
        self._next_place = 0
        self._held = ""  # of the text as shown
        self.stopped = False

    def push(self, token_id: int) -> str:
        """The text that is certain after this token; `stopped` tells that a stop was reached."""
        if self.stopped:
            return ""
        shown = self._shown.push(token_id)
        if self._written is None:
            return shown
        end = self._add(shown, self._written.push(token_id), self._hidden.get(token_id, 0))
        return self._take(end if self.stopped else self._certain())

    def flush(self) -> str:
        """What was held back, once no more tokens come."""
        if self.stopped:
            return ""
        shown = self._shown.flush()
        if self._written is None:
            return shown
        return self._take(self._add(shown, self._written.flush(), 0))

    def _add(self, shown: str, written: str, hidden: int) -> int:
        """Put pieces behind the two texts. Returns how long the one that is shown may become.

        hidden: how many characters at the end of `written` are not shown.
        """
        found = self._written_stops.feed(written)
        if found is not None:  # what comes behind it makes no character of bytes before it
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
        """Say where so many new characters stand, of which the last ones are hidden."""
        end = self._next_place + visible
        if self._shown.complete:
            # A character whose bytes special tokens part is shown as one, and otherwise not.
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
        """What is held of the first so many characters of the text as shown."""
        count = max(0, end - (self._shown_stops.length - len(self._held)))
        text, self._held = self._held[:count], self._held[count:]
        return text


def _special_tokens(tokenizer: Any) -> dict[int, str]:
    """Ids and names of the tokens that a tokenizer doesn't show."""
    known = tokenizer.added_tokens_decoder.items()
    return {token_id: token.content for token_id, token in known if token.special}


class _Detokenizer:
    """Tokens -> text that no later token changes.

    What a tokenizer makes of a few tokens depends on those before them, if only on whether there
    are any. So the last tokens that were told are decoded again, with and without the new ones.
    """

    def __init__(self, tokenizer: Any, special: Mapping[int, str]) -> None:
        """special: what special tokens are written as, which may be nothing."""
        self._tokenizer = tokenizer
        self._special = special
        self._ids: list[int] = []  # new ones behind some that were told before
        self._known = 0  # how many of these were
        self._told = 0  # characters of the text of all these ids
        self.complete = True
        """Whether all of the text is told."""

    def push(self, token_id: int) -> str:
        name = self._special.get(token_id)
        if name is not None:
            return self._parted(token_id) + name if name else ""
        token = self._tokenizer.convert_ids_to_tokens(token_id)
        if token is None:  # the model has more ids than the tokenizer
            return ""
        self._ids.append(token_id)
        # A run of bytes is characters or none of it is, which shows when it ends.
        if _BYTE.fullmatch(token):
            self.complete = False
            return ""
        text = self._decoded()
        # Later bytes may make a character of the last ones.
        self.complete = not text.endswith(_REPLACED)
        piece = self._tell(text if self.complete else text[:-1])
        count = len(self._ids) - self._known
        if (piece and self.complete) or count >= _LONGEST:
            self._ids = self._ids[self._known :]
            self._known = count
            self._told = len(self._decoded()) - (not self.complete)
        return piece

    def flush(self) -> str:
        """What was to be changed yet, once no more tokens come."""
        self.complete = True
        return self._tell(self._decoded())

    def _parted(self, token_id: int) -> str:
        """The same before a special token that is written out: bytes behind it stand alone."""
        text = self.flush()
        if text:
            self._ids, self._known = [token_id], 1
            self._told = len(self._decoded())
        return text

    def _tell(self, text: str) -> str:
        piece = text[self._told :]
        self._told = max(self._told, len(text))
        return piece

    def _decoded(self) -> str:
        text: str = self._tokenizer.decode(self._ids, skip_special_tokens=False)
        return text


def text_pieces(tokenizer: Any, token_ids: Iterable[int]) -> list[str]:
    """What each token adds to the text: nothing where it is special, or where it and the next ones
    make a character together.
    """
    stream = TextStream(tokenizer, stop=())
    pieces = [stream.push(token_id) for token_id in token_ids]
    if pieces:
        pieces[-1] += stream.flush()
    return pieces
