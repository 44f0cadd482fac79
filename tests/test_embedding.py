from __future__ import annotations

import math
import subprocess
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.embeddings import DeterministicFakeEmbedding
from llama_index.core.embeddings import MockEmbedding

from fusionrag_integrations import Store
from fusionrag_integrations.documents.embedding import Embedder, LexicalEmbedder, as_embedder, probe
from fusionrag_integrations.errors import InvalidInputError, StoreMismatchError
from fusionrag_integrations.store.info import StoreInfo
from fusionrag_integrations.store.kv.record_format import FORMAT_VERSION
from tests.embeddings import LangChainLexical, LlamaIndexLexical


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def lexical(text: str) -> list[float]:
    return LexicalEmbedder().embed_query(text)


@given(st.text(alphabet=st.characters()))
def test_lexical_vectors_have_length_one(text: str) -> None:
    vector = lexical(text)
    assert len(vector) == LexicalEmbedder.dimensions == 2048
    assert math.hypot(*vector) == pytest.approx(1.0)


def test_lexical_documents_and_questions_share_a_space() -> None:
    embedder = LexicalEmbedder()
    texts = ["Nora Bell kept bees.", "The harbour froze in 1911.", "Bread needs salt."]
    vectors = embedder.embed_documents(texts)
    assert vectors == [embedder.embed_query(text) for text in texts]
    for question, expected in [
        ("What did Nora Bell keep?", 0),
        ("When did the harbour freeze, in 1911?", 1),
        ("Does bread need salt?", 2),
    ]:
        scores = [cosine(embedder.embed_query(question), v) for v in vectors]
        assert scores.index(max(scores)) == expected


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("museums", "the museum's"),
        ("cities", "city"),
        ("STRASSE", "straße"),
        ("what is the harbour", "harbour"),
        ("the and of", "  "),
        ("", "？！"),
    ],
)
def test_lexical_ignores_form(one: str, other: str) -> None:
    a, b = lexical(one), lexical(other)
    assert {i for i, x in enumerate(a) if x} == {i for i, x in enumerate(b) if x}


@pytest.mark.parametrize("word", ["glass", "virus", "basis", "gas"])
def test_lexical_leaves_words_that_only_look_plural(word: str) -> None:
    assert cosine(lexical(word), lexical(word[:-1])) < 0.5


def test_lexical_weighs_names_more_and_repeats_less() -> None:
    names = lexical("keeper Ardenne")
    plain = lexical("keeper ardenne")
    assert sorted(abs(x) for x in plain if x) == pytest.approx([math.sqrt(0.5)] * 2)
    assert sorted(abs(x) for x in names if x) == pytest.approx(
        [1 / math.hypot(1, 1.5), 1.5 / math.hypot(1, 1.5)]
    )
    twice = sorted(abs(x) for x in lexical("keeper keeper ardenne") if x)
    assert twice[1] / twice[0] == pytest.approx(1 + math.log(2))


def test_lexical_is_the_same_in_every_process() -> None:
    program = (
        "from fusionrag_integrations.documents.embedding import LexicalEmbedder\n"
        "print([(i, x) for i, x in enumerate(LexicalEmbedder().embed_query('Nora Bell 1911'))"
        " if x])"
    )
    expected = [(i, x) for i, x in enumerate(lexical("Nora Bell 1911")) if x]
    for seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed},
        )
        assert run.stdout.strip() == str(expected)


def test_none_is_lexical_and_an_embedder_stays_itself() -> None:
    embedder = as_embedder(None)
    assert isinstance(embedder, LexicalEmbedder)
    assert as_embedder(embedder) is embedder
    assert embedder.name == "lexical-2048-v1"


def test_langchain_embeddings() -> None:
    source = DeterministicFakeEmbedding(size=7)
    embedder = as_embedder(source)
    assert isinstance(embedder, Embedder)
    assert embedder.embed_documents(("a", "b")) == source.embed_documents(["a", "b"])
    assert embedder.embed_query("a") == source.embed_query("a")
    assert embedder.name == "DeterministicFakeEmbedding"


def test_llama_index_embeddings() -> None:
    embedder = as_embedder(MockEmbedding(embed_dim=5, model_name="tiny"))
    assert embedder.embed_documents(["a", "b"]) == [[0.5] * 5] * 2
    assert embedder.embed_query("a") == [0.5] * 5
    assert embedder.name == "MockEmbedding(tiny)"


@pytest.mark.parametrize(
    ("attributes", "name"),
    [
        ({"model": "m"}, "Duck(m)"),
        ({"model": "m", "model_name": "n"}, "Duck(n)"),
        ({"model": object()}, "Duck"),
        ({"model_name": ""}, "Duck"),
    ],
)
def test_names_hold_the_model_where_there_is_one(attributes: dict[str, Any], name: str) -> None:
    class Duck:
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            assert isinstance(texts, list)
            return [[1] for _ in texts]

        def embed_query(self, text: str) -> list[float]:
            return [2]

    duck = Duck()
    vars(duck).update(attributes)
    embedder = as_embedder(duck)
    assert embedder.name == name
    assert all(isinstance(x, float) for x in embedder.embed_documents(("a",))[0])
    assert isinstance(embedder.embed_query("a")[0], float)


def test_anything_else_is_refused_with_what_is_accepted() -> None:
    class Half:
        embed_documents = "not callable"

        def embed_query(self, text: str) -> list[float]:
            return [0.0]

    for thing in ("all-MiniLM", Half(), object()):
        with pytest.raises(InvalidInputError, match=r"embed_documents.*get_text_embedding_batch"):
            as_embedder(thing)


@pytest.mark.parametrize("made", [None, 5, "vectors"])
def test_what_makes_no_vectors_is_refused(made: Any) -> None:
    class Broken:
        def embed_documents(self, texts: list[str]) -> Any:
            return made

        def embed_query(self, text: str) -> list[float]:
            return [1.0]

    with pytest.raises(InvalidInputError, match=r"'Broken' can't be used: .* list of vectors"):
        probe(as_embedder(Broken()))


def test_frameworks_are_not_imported() -> None:
    program = (
        "import sys\n"
        "from fusionrag_integrations.documents.embedding import as_embedder\n"
        "as_embedder(None)\n"
        "print([m for m in ('langchain_core', 'llama_index', 'torch', 'chromadb')"
        " if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stderr


class Model:
    """A hosted model: its texts' directions by their letters, its vectors never quite the same."""

    def __init__(self, model: str, noise: float = 1e-4, questions: str = "") -> None:
        self.deployment = model
        self._seed, self._noise, self._prompt = zlib.crc32(model.encode()), noise, questions

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        mix = np.random.default_rng(self._seed).standard_normal((256, 24))
        counts = np.array([np.bincount(list(text.encode()), minlength=256) for text in texts])
        vectors = np.tanh(counts @ mix / (1 + counts.sum(axis=1, keepdims=True)))
        jitter = np.random.default_rng().standard_normal(vectors.shape)
        return [list(map(float, row)) for row in vectors + self._noise * jitter]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([self._prompt + text])[0]


class Reads(Model):
    """A model that reads so many characters of a text, and drops what its encoding hasn't."""

    def __init__(self, characters: int, encoding: str = "utf-8") -> None:
        super().__init__("a")
        self._characters, self._encoding = characters, encoding

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        read = [text.encode(self._encoding, "ignore").decode() for text in texts]
        return super().embed_documents([text[: self._characters] for text in read])


class Through:
    """The same model, as the other framework has it."""

    def __init__(self, model: Model) -> None:
        self.get_text_embedding_batch = model.embed_documents
        self.get_query_embedding = model.embed_query


class CacheBacked(Model):
    """As `CacheBackedEmbeddings`, with the model inside."""

    def __init__(self, model: Model) -> None:
        self.embed_documents = model.embed_documents  # type: ignore[method-assign]
        self.embed_query = model.embed_query  # type: ignore[method-assign]


def made_with(path: Path, embedding: object) -> Path:
    info = StoreInfo(FORMAT_VERSION, "-", "-", as_embedder(embedding).name, 48, "float32")
    Store.create(path, info, embedding).close()
    return path


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Model("a"), Model("a")),
        (Model("a"), Through(Model("a"))),
        (Through(Model("a")), CacheBacked(Model("a"))),
        (None, LangChainLexical()),
        (LangChainLexical(), LlamaIndexLexical()),
        (MockEmbedding(embed_dim=5), MockEmbedding(embed_dim=5)),
    ],
)
def test_one_embedding_opens_its_store_by_whichever_name(
    tmp_path: Path, first: object, second: object
) -> None:
    Store.open(made_with(tmp_path / "store", first), second).close()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Model("a"), Model("b")),
        (CacheBacked(Model("a")), CacheBacked(Model("b"))),
        (Model("a"), Model("a", questions="Represent this question for retrieval: ")),
        (Model("a"), None),
        (Model("a"), Reads(512)),
        (Reads(512), Reads(128)),
        (Model("a"), Reads(9999, "ascii")),
        (MockEmbedding(embed_dim=5), MockEmbedding(embed_dim=6)),
        (DeterministicFakeEmbedding(size=7), MockEmbedding(embed_dim=7)),
    ],
)
def test_another_embedding_is_refused_by_whichever_name(
    tmp_path: Path, first: object, second: object
) -> None:
    store = made_with(tmp_path / "store", first)
    with pytest.raises(StoreMismatchError, match="makes other vectors"):
        Store.open(store, second)
