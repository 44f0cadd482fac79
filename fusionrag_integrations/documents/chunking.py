"""Documents -> chunks of at most a given number of tokens, each a slice of its document.

Tokens are counted with tiktoken's cl100k_base: one measure for every model, and the one by which
frameworks count.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from fusionrag_integrations.documents.keys import chunk_id, metadata_json
from fusionrag_integrations.documents.types import Chunk, Document, canonical_text
from fusionrag_integrations.errors import FusionRAGError, InvalidInputError
from fusionrag_integrations.support.inputs import check_fields

MIN_CHUNK_TOKENS = 16
MAX_CHUNK_TOKENS = 1_000_000  # no model's context holds more

_LONGEST_TOKEN = 128  # characters in the longest token of cl100k_base

_PARAGRAPH_END = re.compile(r"\n\s*\n")  # what follows keeps its indentation
_LINE_END = re.compile(r"[\r\n](?:\s*[\r\n])?")
_SENTENCE_END = re.compile(r"""[.!?]["'”’)\]]*\s+|[。！？]["'”’」』）]*\s*""")
_WORD_END = re.compile(r"\s+")
_ANY_CHARACTER = re.compile(r"(?s:.)")

_RANKS_URL = "https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken"
_TOKEN_PATTERN = (
    r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"""
    r"""| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"""
)


@dataclass(frozen=True, slots=True)
class Chunker:
    """Splits documents at the coarsest boundary that suffices, and packs the pieces greedily.

    Boundaries, coarsest first: paragraphs, lines, sentences, words, grapheme clusters.
    chunk_tokens: the most cl100k_base tokens in a chunk, from 16 to a million; `InvalidInputError`
    otherwise.
    """

    chunk_tokens: int = 256

    def __post_init__(self) -> None:
        check_fields(self)
        if not MIN_CHUNK_TOKENS <= self.chunk_tokens <= MAX_CHUNK_TOKENS:
            raise InvalidInputError(
                f"chunk_tokens is {self.chunk_tokens}; it must be at least {MIN_CHUNK_TOKENS}, and "
                f"at most {MAX_CHUNK_TOKENS}."
            )

    def split(self, document: Document) -> list[Chunk]:
        """The document's chunks in order; only white space is left out between them.

        A document's passages become chunks as they are, however long. Raises `FusionRAGError` where
        the token table is neither bundled nor cached nor reachable.
        """
        if document.passages:
            given = ((canonical_text(p.text), p.metadata) for p in document.passages)
            pieces = [(text, metadata) for text, metadata in given if text]
        else:
            pieces = [(text, {}) for text in self._texts(document.text)]
        seen: Counter[str] = Counter()
        chunks: list[Chunk] = []
        for text, metadata in pieces:
            metadata = {**document.metadata, **metadata}
            identity = chunk_id(
                document.id,
                text,
                seen[text],
                scope=document.scope,
                title=document.title,
                metadata=metadata_json(document.id, metadata),
            )
            chunks.append(
                Chunk(
                    id=identity,
                    document_id=document.id,
                    index=len(chunks),
                    text=text,
                    title=document.title,
                    scope=document.scope,
                    metadata=metadata,
                )
            )
            seen[text] += 1
        return chunks

    def _texts(self, text: str) -> Iterator[str]:
        """Canonical slices of the text: as many pieces as fit into a chunk, again and again."""
        pieces = list(self._pieces(text, 0, len(text), _levels()))
        first = 0
        while first < len(pieces):
            start = pieces[first][0]

            def too_long(last: int, start: int = start) -> bool:
                return not self._fits(text[start : pieces[last][1]])

            # Each call of too_long counts all tokens, since counts don't add up over pieces. By
            # doubling the step there are few calls, for texts about as long as the chunk.
            step = 1
            while first + step < len(pieces) and not too_long(first + step):
                step *= 2
            stop = bisect_left(
                range(len(pieces)),
                True,
                lo=first + step // 2 + 1,
                hi=min(first + step, len(pieces)),
                key=too_long,
            )
            if chunk := canonical_text(text[start : pieces[stop - 1][1]]):
                yield chunk
            first = stop

    def _pieces(
        self, text: str, start: int, stop: int, levels: Sequence[Any]
    ) -> Iterator[tuple[int, int]]:
        """Bounds of pieces that cover [start, stop) in order and each fit into a chunk."""
        if not levels or self._fits(text[start:stop]):
            yield start, stop
            return
        ends = (match.end() for match in levels[0].finditer(text, start, stop))
        for a, b in pairwise((start, *ends, stop)):
            if a < b:
                yield from self._pieces(text, a, b, levels[1:])

    def _fits(self, text: str) -> bool:
        text = canonical_text(text)
        if len(text) > self.chunk_tokens * _LONGEST_TOKEN:
            return False  # saves counting the tokens of a whole book
        return len(tiktoken_encoding().encode_ordinary(text)) <= self.chunk_tokens


def first_sentence(text: str) -> str:
    """The text up to the end of its first line or sentence, without final punctuation."""
    found = [pattern.search(text) for pattern in (_LINE_END, _SENTENCE_END)]
    stop = min((match.start() for match in found if match), default=len(text))
    return text[:stop].rstrip(" .!?。！？")


@cache
def _levels() -> tuple[Any, ...]:
    """Patterns whose matches end a piece, coarsest first.

    A grapheme cluster may hold any number of combining marks. One that is too long for a chunk is
    split into characters, each of at most four bytes and so at most four tokens.
    """
    import regex  # type: ignore[import-untyped]  # tiktoken needs it too

    return (
        _PARAGRAPH_END,
        _LINE_END,
        _SENTENCE_END,
        _WORD_END,
        regex.compile(r"\X"),
        _ANY_CHARACTER,
    )


@cache
def tiktoken_encoding() -> Any:
    """cl100k_base, from the table that llama-index-core bundles, else through tiktoken's cache.

    The bundled table is read here because tiktoken's reader writes a copy into its own cache.
    """
    import tiktoken

    bundled = bundled_ranks()
    if bundled is not None:
        lines = (line.split() for line in bundled.read_bytes().splitlines() if line)
        return tiktoken.Encoding(
            "cl100k_base",
            pat_str=_TOKEN_PATTERN,
            mergeable_ranks={base64.b64decode(token): int(rank) for token, rank in lines},
            special_tokens={},
        )
    try:
        return tiktoken.get_encoding("cl100k_base")
    except OSError as error:
        raise FusionRAGError(
            "The cl100k_base token table isn't bundled with the installed llama-index-core, and "
            "tiktoken can't download it. Set TIKTOKEN_CACHE_DIR to a directory that holds "
            f"{_RANKS_URL} under tiktoken's name for it, {_ranks_name()}."
        ) from error


def _ranks_name() -> str:
    return hashlib.sha1(_RANKS_URL.encode(), usedforsecurity=False).hexdigest()


def bundled_ranks() -> Path | None:
    """llama-index-core's copy of the table, found without importing it."""
    try:
        distribution = importlib.metadata.distribution("llama-index-core")
    except importlib.metadata.PackageNotFoundError:
        return None
    folder = "llama_index/core/_static/tiktoken_cache"
    path = Path(str(distribution.locate_file(f"{folder}/{_ranks_name()}")))
    return path if path.is_file() else None
