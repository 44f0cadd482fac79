"""Text -> vectors: any LangChain or LlamaIndex embedding, or a small lexical one.

Embeddings are recognised by their methods, so that neither framework is imported.
"""

from __future__ import annotations

import math
import re
import struct
import zlib
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.support.inputs import holds_several, shown

_MOST = 3.4028234e38  # the largest float32: vectors are stored as float32


@runtime_checkable
class Embedder(Protocol):
    """Makes vectors of one length from texts. name: for messages."""

    @property
    def name(self) -> str: ...

    def embed_documents(self, texts: Sequence[str]) -> list[list[float]]:
        """One vector a text, in order."""

    def embed_query(self, text: str) -> list[float]:
        """The vector of a question."""


def as_embedder(embedding: object | None) -> Embedder:
    """The embedding as an `Embedder`; for None the built-in `LexicalEmbedder`.

    Raises `InvalidInputError` where `embedding` has the methods of neither framework.
    """
    if embedding is None:
        return LexicalEmbedder()
    if isinstance(embedding, Embedder) and isinstance(embedding.name, str):
        return embedding
    for documents, query in (
        ("embed_documents", "embed_query"),
        ("get_text_embedding_batch", "get_query_embedding"),
    ):
        if callable(getattr(embedding, documents, None)) and callable(
            getattr(embedding, query, None)
        ):
            return _FrameworkEmbedder(embedding, documents, query)
    raise InvalidInputError(
        f"{type(embedding).__name__} is not an embedding: give an object with LangChain's "
        "embed_documents and embed_query, one with LlamaIndex's get_text_embedding_batch and "
        "get_query_embedding, or None for the built-in lexical embedding."
    )


def probe(embedder: Embedder) -> str:
    """The vectors of a few texts, which identify an embedding whatever it is called.

    Of each text as a document, then of the first as a question: scaled to length 1, float32,
    compressed, in base64. Raises `InvalidInputError` where they aren't vectors.
    """
    vectors = [*embedder.embed_documents(_PROBES), embedder.embed_query(_PROBES[0])]
    finite = all(math.isfinite(x) for vector in vectors for x in vector)
    if len(vectors) != len(_PROBES) + 1 or len({*map(len, vectors)}) > 1 or not finite:
        raise InvalidInputError(
            f"The embedding {embedder.name!r} can't be used: it has to make one vector of each "
            "text, all of one length, of finite numbers."
        )
    parts = (struct.pack(f"<I{len(v)}f", len(v), *_direction(v)) for v in vectors)
    return b64encode(zlib.compress(b"".join(parts))).decode()


def same_embedding(stored: str, given: str) -> bool:
    """Whether two results of `probe` are of the same embedding.

    Rounding, batches and hardware change its vectors a little from run to run, but far less than
    those of different texts differ.
    """
    before, now = _probed(stored), _probed(given)
    if not before or list(map(len, before)) != list(map(len, now)):
        return False
    documents = before[:-1]
    mean = [sum(column) / len(documents) for column in zip(*documents, strict=True)]
    spread = max(math.dist(vector, mean) for vector in documents)
    most = _ROUNDING + _OF_SPREAD * spread
    return all(math.dist(a, b) <= most for a, b in zip(before, now, strict=True))


_SENTENCES = (
    "The ferry across the river leaves every hour from the old harbour.",
    "Profits rose by 4% in the third quarter of 1998, the bank said.",
    "Proteins fold into shapes that decide which molecules they bind.",
)
_PROBES = (
    *_SENTENCES,
    # Some embeddings differ only in other scripts, or in how much of a long text they read: the
    # subject of the last text changes each time that its length doubles.
    "Über den Fluß, forêt d'été, año, река, 川を渡る。",
    " ".join(_SENTENCES[i % 3] for i in range(5) for _ in range(2**i)),
)
_ROUNDING, _OF_SPREAD = 1e-3, 0.15


def _direction(vector: Sequence[float]) -> list[float]:
    length = math.hypot(*vector)
    return [x / length for x in vector] if length else list(vector)


def _probed(packed: str) -> list[tuple[float, ...]]:
    numbers = zlib.decompress(b64decode(packed)) if packed else b""
    vectors = []
    while numbers:
        (length,) = struct.unpack_from("<I", numbers)
        vectors.append(struct.unpack_from(f"<{length}f", numbers, 4))
        numbers = numbers[4 + 4 * length :]
    return vectors


class _FrameworkEmbedder:
    """A framework's embedding. documents, query: the names of its two methods."""

    def __init__(self, embedding: Any, documents: str, query: str) -> None:
        self.name = _name(embedding)
        self._documents = getattr(embedding, documents)
        self._query = getattr(embedding, query)

    def embed_documents(self, texts: Sequence[str]) -> list[list[float]]:
        found = self._documents(list(texts))
        if not holds_several(found):
            raise InvalidInputError(
                f"The embedding {self.name!r} can't be used: of several texts it makes "
                f"{shown(found)}, and not a list of vectors."
            )
        return [as_vector(vector) for vector in found]

    def embed_query(self, text: str) -> list[float]:
        return as_vector(self._query(text))


def _name(embedding: object) -> str:
    """The class, with the model where the object names one."""
    models = (getattr(embedding, attribute, None) for attribute in ("model_name", "model"))
    model = next((m for m in models if isinstance(m, str) and m), None)
    kind = type(embedding).__name__
    return f"{kind}({model})" if model else kind


def as_vector(given: object) -> list[float]:
    """A vector as Python floats.

    Raises `InvalidInputError` unless it is a list, array or other iterable of finite numbers.
    """
    try:
        numbers = [float(x) for x in _entries(given)]
    except (TypeError, ValueError, OverflowError, RuntimeError):
        numbers = []
    if not numbers or not all(abs(x) <= _MOST for x in numbers):
        raise InvalidInputError(
            f"An embedding can't be used: {shown(given)} is no list of finite numbers."
        )
    return numbers


def _entries(given: Any) -> list[Any]:
    """A vector's entries; none where it holds strings or booleans, which `float` would accept."""
    entries = list(given) if holds_several(given) else []
    return [] if any(isinstance(x, str | bytes | bool) for x in entries) else entries


class LexicalEmbedder:
    """Hashed bags of words: no download, the same vectors in every process.

    Each word adds +-(1 + ln count) to one of 2,048 dimensions, and 1.5 times as much where it is
    capitalised or holds a digit, as names and years do. Vectors have length 1.
    """

    name = "lexical-2048-v1"
    dimensions = 2048

    def embed_documents(self, texts: Sequence[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        counts: Counter[str] = Counter()
        names: set[str] = set()
        for word in _WORD.findall(text):
            if word.casefold() in _STOP_WORDS:
                continue
            term = _term(word)
            counts[term] += 1
            if word[0].isupper() or any(c.isdigit() for c in word):
                names.add(term)
        vector = [0.0] * self.dimensions
        for term, count in counts.items():
            weight = (1.0 + math.log(count)) * (_NAME_WEIGHT if term in names else 1.0)
            digest = zlib.crc32(term.encode("utf-8", "surrogatepass"))
            vector[(digest >> 1) % self.dimensions] += weight if digest & 1 else -weight
        norm = math.hypot(*vector)
        if norm == 0.0:
            # Without any usable word: a fixed direction, since the cosine of zeros is undefined.
            return [1.0, *vector[1:]]
        return [x / norm for x in vector]


_WORD = re.compile(r"\w+(?:['’]\w+)*")
_POSSESSIVE = re.compile(r"['’]s$")
_NAME_WEIGHT = 1.5
_STOP_WORDS = frozenset(
    _WORD.findall(
        """
        a about after all also am an and any are as at be because been before being between both
        but by called can could did do does during each for from had has have he her hers him his
        how i if in into is it its known many may me more most much my name named no nor not of on
        or other our out over own same she should so some such than that the their theirs them
        then there these they this those to under until up us was we were what when where which
        while who whom whose why will with would you your
        """
    )
)


def _term(word: str) -> str:
    """The word without case, possessive or plain plural."""
    term = _POSSESSIVE.sub("", word.casefold())
    if len(term) > 4 and term.endswith("ies"):
        return term[:-3] + "y"
    if len(term) > 3 and term.endswith("s") and not term.endswith(("ss", "us", "is")):
        return term[:-1]
    return term
