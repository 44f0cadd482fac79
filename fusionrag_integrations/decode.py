"""Warm cache -> tokens, streamed, with sampling and stops.

What processes logits and ends answers is transformers' own. Text comes out as whole characters, and
is together what the tokenizer makes of all tokens at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StoppingCriteriaList

from fusionrag_integrations.model import Generation, StepFunction
from fusionrag_integrations.types import FinishReason

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # a token that is a byte of a character that has none
CALL_TOKENS = (
    *("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]", "<tool_call>", "</tool_call>"),
    *("<|tool_call|>", "<|/tool_call|>", "<|python_tag|>"),
)
"""Tokens by which models mark calls of tools: special ones in some tokenizers, plain in others."""

_REPLACED = "\ufffd"  # what bytes are decoded to that are no character, or not yet


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
        self._decoder = _Detokenizer(tokenizer)
        self._stop = tuple(stop)
        self._shown = frozenset(shown)
        self._names = {
            token_id: name
            for token_id, name in (_special_tokens(tokenizer) if stop or shown else {}).items()
            if stop or name in self._shown
        }
        self._held = ""  # with special tokens written out
        self._visible: list[bool] = []  # which of its characters are shown
        self.stopped = False

    def push(self, token_id: int) -> str:
        """The text that is certain after this token; `stopped` tells that a stop was reached."""
        text, name = self._decoder.push(token_id), self._names.get(token_id, "")
        if name and not text:
            # Bytes that make no character yet come before it where that may matter.
            so_far = self._held + self._decoder.rest() + name
            if name in self._shown or self._find(so_far) >= 0 or self._begun(so_far):
                text = self._decoder.flush()
        self._add(text, visible=True)
        self._add(name, visible=name in self._shown)
        return self._take(self._certain())

    def flush(self) -> str:
        """What was held back, once no more tokens come."""
        if not self.stopped:
            self._add(self._decoder.flush(), visible=True)
        return self._take(len(self._held))

    def _add(self, text: str, visible: bool) -> None:
        """Put text behind what is held, up to a stop string."""
        if self.stopped:
            return
        self._held += text
        self._visible += [visible] * len(text)
        text, places = self._as_shown()
        found = [at for at in (self._find(self._held),) if at >= 0]
        found += [places[at] for at in (self._find(text),) if at >= 0]
        if found:
            self.stopped = True
            self._held = self._held[: min(found)]

    def _certain(self) -> int:
        """How many characters of those held can't belong to a stop string."""
        if self.stopped:
            return len(self._held)
        text, places = self._as_shown()
        begun = [len(self._held) - self._begun(self._held)]
        if length := self._begun(text):
            begun.append(places[-length])
        return min(begun)

    def _as_shown(self) -> tuple[str, list[int]]:
        """What is held as it is shown, and where in it each of the characters stands."""
        places = [at for at, visible in enumerate(self._visible) if visible]
        return "".join(self._held[at] for at in places), places

    def _find(self, text: str) -> int:
        """Where the first stop string begins; -1 where there is none."""
        return min((at for at in map(text.find, self._stop) if at >= 0), default=-1)

    def _begun(self, text: str) -> int:
        """Length of the longest beginning of a stop string with which a text ends."""
        return max((_overlap(text, string) for string in self._stop), default=0)

    def _take(self, count: int) -> str:
        """The first so many characters that are held, as they are shown."""
        pairs = zip(self._held[:count], self._visible, strict=False)
        text = "".join(character for character, visible in pairs if visible)
        self._held, self._visible = self._held[count:], self._visible[count:]
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

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special = _special_tokens(tokenizer)
        self._ids: list[int] = []  # that aren't told, behind those that were told last
        self._told = 0  # how many of these were

    def push(self, token_id: int) -> str:
        self._ids.append(token_id)
        # A run of bytes is characters or none of it is, which shows when it ends; tokens that
        # aren't shown don't end it.
        name = self._tokenizer.convert_ids_to_tokens(token_id) or ""
        if token_id in self._special or _BYTE.fullmatch(name):
            return ""
        text = self.rest()
        return "" if text.endswith(_REPLACED) else self._tell(text)

    def flush(self) -> str:
        """What was to be changed yet, once no more tokens come."""
        return self._tell(self.rest())

    def rest(self) -> str:
        """The same, which later tokens may change, without telling it."""
        before, now = (self._decoded(self._ids[: self._told]), self._decoded(self._ids))
        return now[len(before) :]

    def _tell(self, text: str) -> str:
        if text:
            self._ids = self._ids[self._told :]
            self._told = len(self._ids)
        return text

    def _decoded(self, token_ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=True)
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


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper beginning of `stop` with which `text` ends."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
