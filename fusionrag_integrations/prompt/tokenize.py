"""Text -> tokens with their offsets; those of known chunks are not encoded again."""

from __future__ import annotations

import json
import unicodedata
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from tokenizers import Encoding, Tokenizer

from fusionrag_integrations.documents.chunk_record import EncodedChunk
from fusionrag_integrations.documents.types import Chunk
from fusionrag_integrations.prompt.assembled import TextMatch
from fusionrag_integrations.prompt.control_tokens import Places, TextTokenizer, text_tokenizer
from fusionrag_integrations.prompt.messages import Prompt
from fusionrag_integrations.prompt.render import RenderedPrompt, render

EDGE = 2  # tokens at either end of a chunk that the text around it may change
MARGIN = 4  # tokens next to those that are encoded again, too, and must come out the same
SEARCH = 32  # tokens of a chunk that are searched for a place to cut


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt as the model reads it. offsets: each token's character bounds in `text`.

    content_stop: the character after the user's text, where the template's own text ends the
    prompt.
    """

    text: str
    token_ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]
    content_stop: int

    def position(self, character: int) -> int:
        """The first token that begins at this character or after it."""
        return bisect_left(self.offsets, (character,))


def encode(tokenizer: Any, prompt: Prompt) -> EncodedPrompt:
    """Tokens of a prompt. Raises as `render` does."""
    return encode_rendered(tokenizer, render(tokenizer, prompt))


def encode_rendered(
    tokenizer: Any, rendered: RenderedPrompt, matches: Sequence[TextMatch] = ()
) -> EncodedPrompt:
    """Tokens of a rendered prompt.

    matches: known chunks in it, in order. The tokens inside them are known, so only the text
    between is encoded, with some of their tokens on either side. All of it is encoded if these
    come out otherwise, or if the tokenizer's rules may reach across a space.
    """
    text_only = text_tokenizer(tokenizer, rendered.text)
    renamed = text_only.rename(rendered.text, rendered.quoted)
    # A text that begins with the special tokens already doesn't get them twice.
    begun = text_only.before and rendered.text.startswith(text_only.beginning)
    added = rendered.plain and not begun
    if matches and (encoded := _encode_between(text_only, rendered, renamed, added, matches)):
        return encoded
    (encoding,) = _encodings(text_only.backend, [renamed], special=added)
    return EncodedPrompt(
        rendered.text, tuple(encoding.ids), _pairs(encoding.offsets), rendered.content_stop
    )


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text's tokens, none of which is a control token, as in a chunk or a message."""
    (encoding,) = _encodings(text_tokenizer(tokenizer, text).backend, [text])
    ids: list[int] = encoding.ids
    return ids


def encode_chunk(tokenizer: Any, chunk: Chunk) -> EncodedChunk:
    """A chunk's text alone in the model's tokens. None is a control token, whatever it spells."""
    (encoding,) = _encodings(text_tokenizer(tokenizer, chunk.text).backend, [chunk.text])
    return EncodedChunk(chunk, tuple(encoding.ids), _pairs(encoding.offsets))


def _encodings(
    backend: Tokenizer, texts: Sequence[str], *, special: bool = False
) -> list[Encoding]:
    """Each text's tokens. Other threads go on meanwhile; `Tokenizer.encode` would stop them."""
    return backend.encode_batch(list(texts), add_special_tokens=special)


@dataclass(frozen=True, slots=True)
class _Inside:
    """A chunk's tokens [first, stop), which are reused; its text begins at character `shift`."""

    chunk: EncodedChunk
    shift: int
    first: int
    stop: int

    def begin(self, text: str) -> int:
        """The character that the first of them begins at, its space included."""
        return _cut(text, self.chunk, self.shift, self.first)

    def end(self, text: str) -> int:
        """The character after the last of them."""
        return _cut(text, self.chunk, self.shift, self.stop)

    def ids(self, first: int, stop: int) -> tuple[int, ...]:
        return self.chunk.token_ids[first:stop]

    def offsets(self, first: int, stop: int) -> Places:
        shift = self.shift
        return tuple([(a + shift, b + shift) for a, b in self.chunk.offsets[first:stop]])


def _encode_between(
    text_only: TextTokenizer,
    rendered: RenderedPrompt,
    renamed: str,
    added: bool,
    matches: Sequence[TextMatch],
) -> EncodedPrompt | None:
    """Encode the text between known chunks; None if the tokens may differ from the whole text's."""
    text = rendered.text
    if (added and text_only.after) or not _stops_at_spaces(text_only.backend, text):
        return None
    special = text_only.before if added else ()
    insides = [inside for match in matches if (inside := _inside(text, match))]
    if not insides:
        return None
    bounds = [0, *chain.from_iterable((i.begin(text), i.end(text)) for i in insides), len(text)]
    pieces = [renamed[start:stop] for start, stop in zip(bounds[::2], bounds[1::2], strict=True)]
    encodings = _encodings(text_only.backend, pieces)
    ids: list[int] = list(special)
    offsets: list[tuple[int, int]] = [(0, 0)] * len(special)
    for number, (encoding, start) in enumerate(zip(encodings, bounds[::2], strict=True)):
        piece_ids = tuple(encoding.ids)
        piece_offsets = tuple([(a + start, b + start) for a, b in encoding.offsets])
        if number > 0:
            before = insides[number - 1]
            known = before.stop, before.stop + MARGIN
            if piece_ids[:MARGIN] != before.ids(*known):
                return None
            again = before.offsets(*known)
            if piece_offsets[1:MARGIN] != again[1:]:
                return None
            # Some tokenizers include the space in a text's first token, and in no other.
            piece_offsets = again + piece_offsets[MARGIN:]
        ids += piece_ids
        offsets += piece_offsets
        if number < len(insides):
            after = insides[number]
            known = after.first - MARGIN, after.first
            if piece_ids[-MARGIN:] != after.ids(*known):
                return None
            if piece_offsets[-MARGIN:] != after.offsets(*known):
                return None
            ids += after.ids(after.first, after.stop)
            offsets += after.offsets(after.first, after.stop)
    return EncodedPrompt(text, tuple(ids), tuple(offsets), rendered.content_stop)


def _inside(text: str, match: TextMatch) -> _Inside | None:
    """The part of a chunk that needn't be encoded; None if it is short or has no place to cut."""
    chunk, shift = match.record.encoded, match.start
    length = match.stop - match.start
    count = bisect_left(chunk.offsets, (length,))  # tokens that begin in the text that was found
    lowest, highest = EDGE + MARGIN, count - EDGE - MARGIN
    firsts = range(lowest, min(lowest + SEARCH, highest))
    stops = range(highest, max(lowest, highest - SEARCH), -1)
    first = next((i for i in firsts if _is_cut(text, chunk, shift, i)), None)
    stop = next((i for i in stops if _is_cut(text, chunk, shift, i)), None)
    if first is None or stop is None or stop <= first:
        return None
    return _Inside(chunk, shift, first, stop)


def _cut(text: str, chunk: EncodedChunk, shift: int, token: int) -> int:
    """Where the text can be cut before a token, if `_is_cut`."""
    start = chunk.offsets[token][0] + shift
    return start if text[start] == " " else start - 1


def _is_cut(text: str, chunk: EncodedChunk, shift: int, token: int) -> bool:
    """Whether a token begins a word, and one space separates it from the word before.

    Some tokenizers include the space in the token's offsets, others don't.
    """
    at = _cut(text, chunk, shift, token)
    before = chunk.offsets[token - 1][1] + shift
    return (
        before == at
        and text[at] == " "
        and text[at - 1].isalnum()
        and text[at + 1 : at + 2].isalnum()
    )


def _stops_at_spaces(backend: Tokenizer, text: str) -> bool:
    """Whether no token spans a space between words, as in byte-level BPE.

    Such tokenizers split a text into words, from left to right, before they merge anything.
    """
    normal = _parts(backend.normalizer, "normalizers")
    if any(part["type"] != "NFC" for part in normal):
        return False
    if normal and not unicodedata.is_normalized("NFC", text):
        return False
    rules = _parts(backend.pre_tokenizer, "pretokenizers")
    if not rules or any(rule["type"] not in ("Split", "ByteLevel", "Digits") for rule in rules):
        return False
    sample = "Some words, and 12 more 345 (words) in a_row"
    starts = {start for _, (start, _) in backend.pre_tokenizer.pre_tokenize_str(sample)}
    return starts.issuperset(i for i, character in enumerate(sample) if character == " ")


def _parts(component: Any, of_sequence: str) -> list[dict[str, Any]]:
    """The settings of a tokenizer's component; if it is a sequence, of its components."""
    if component is None:
        return []
    settings = json.loads(component.__getstate__())
    parts: list[dict[str, Any]] = settings.get(of_sequence, [settings])
    return parts


def _pairs(offsets: Sequence[Sequence[int]]) -> tuple[tuple[int, int], ...]:
    return tuple((start, stop) for start, stop in offsets)
