"""Ingest: of documents, of files, of many at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import nan
from pathlib import Path

from langchain_core.documents import Document as LangChainDocument

from fusionrag_integrations import Document, Passage
from fusionrag_integrations.documents.embedding import LexicalEmbedder
from fusionrag_integrations.documents.readers import read_documents
from fusionrag_integrations.ingest.neighbours import Neighbours
from fusionrag_integrations.langchain import to_documents
from fusionrag_integrations.store.kv.disk_budget import Budgets
from tests.conftest import nested, town
from tests.provocations.world import Provoked, Seen, World, held

provoked = Provoked()


class FewEmbeddings(LexicalEmbedder):
    """Forgets texts of towns."""

    def embed_documents(self, texts: Sequence[str]) -> list[list[float]]:
        return super().embed_documents([text for text in texts if "Town" not in text])


class NoNumbers(LexicalEmbedder):
    """Of texts of towns."""

    def embed_documents(self, texts: Sequence[str]) -> list[list[float]]:
        made = zip(texts, super().embed_documents(texts), strict=True)
        return [[nan] * len(v) if "Town" in text else v for text, v in made]


class NoVectors:
    def embed_documents(self, texts: list[str]) -> None:
        return None

    def embed_query(self, text: str) -> list[float]:
        return [1.0]


class NothingEmbedded(LexicalEmbedder):
    def embed_documents(self, texts: Sequence[str]) -> list[list[float]]:
        return []


def row(world: World, content: object) -> list[Document]:
    """The documents of a .jsonl file with this row."""
    return list(read_documents([world.file("rows.jsonl", json.dumps(content))]))


def rows(world: World, content: bytes) -> list[Document]:
    return list(read_documents([world.file("rows.jsonl", content)]))


@provoked.by("Another ingest or delete is changing the store at .... Wait for it to end.")
def two_at_once(world: World) -> None:
    with held(world.store):
        world.engine.ingest([])


@provoked.by("The store at ... can't be written: .... Answering from it needs no writing.")
def read_only(world: World) -> None:
    """The file that is locked can't be opened for writing."""
    engine = world.open()
    (engine.store.path / "writing.lock").mkdir()
    engine.ingest([])


@provoked.by("Can't write ...: ...")
def full_disk(world: World) -> None:
    engine = world.open()
    world.full_disk()
    engine.ingest([town(0)])


@provoked.by("The disk's budget is full: some chunks' KV was not kept.")
def full_budget(world: World) -> list[Seen]:
    world.open(budgets=Budgets(disk=0)).ingest([Document("a", "A text.")])
    return world.logged()


@provoked.by(
    "KV ... has ... bytes; at most ... are read. Make a store with a smaller chunk_tokens."
)
def large_record(world: World) -> None:
    """As of a chunk of very many tokens, under a bound that a short one exceeds."""
    world.patch.setattr("fusionrag_integrations.store.kv.record_files.MAX_RECORD_BYTES", 100)
    world.open().ingest([town(0)])


@provoked.by("No documents found in ...")
def empty_file(world: World) -> None:
    rows(world, b"")


@provoked.by("...: can't be read (...).")
def unreadable_file(world: World) -> None:
    def denied(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    file = world.file("a.txt", "text")
    world.patch.setattr(Path, "read_bytes", denied)
    list(read_documents([file]))


provoked.pairs += [
    ("No documents found in ...", lambda w: list(read_documents([w.tmp]))),
    ("... line ...: not JSON (...).", lambda w: rows(w, b"{'text': 1}")),
    ("... line ...: not UTF-8 text.", lambda w: rows(w, b'{"text": "caf\xe9"}')),
    (
        "... line ...: not UTF-8 text.",
        lambda w: list(read_documents([w.file("a.txt", b"a\ncaf\xe9")])),
    ),
    (
        "Metadata of document ... can't be stored: ...",
        lambda w: ingest(w, metadata={"x": object()}),
    ),
    (
        "Metadata of document ... can't be stored: ...",
        lambda w: ingest(w, metadata={"x": "\ud83d"}),
    ),
]


def ingest(world: World, name: str = "a", text: str = "A text.", **more: object) -> None:
    world.engine.ingest([Document(name, text, **more)])  # type: ignore[arg-type]


provoked.each(
    {
        "Give ingest a list of documents; got a single ...": lambda w: w.engine.ingest(town(0)),  # type: ignore[arg-type]
        "A ... can't be ingested; give this package's Document. ...": lambda w: w.engine.ingest(
            [LangChainDocument("text")]  # type: ignore[list-item]
        ),
        "A document's id is ...; give a non-empty string.": lambda w: ingest(w, name=""),
        "The ... of document ... is ...; give a string.": lambda w: ingest(w, text=None),  # type: ignore[arg-type]
        "A passage's text is ...; give a string.": lambda w: Passage(None),  # type: ignore[arg-type]
        "Document ... has a text and passages; give one of them.": lambda w: ingest(
            w, passages=(Passage("one"),)
        ),
        "metadata is nested too deep; give entries with less in them.": lambda w: ingest(
            w, metadata={"x": nested()}
        ),
        "...: its name is not UTF-8 text; rename the file, or ...": lambda w: list(
            read_documents([w.file("caf\udce9.txt")])
        ),
        "... holds half a surrogate pair at character ...; decode its source again, ...": (
            lambda w: ingest(w, text="half \ud83d")
        ),
        "Chunk ... of document ... needs ... tokens with the ingest prefix; ...": lambda w: w.open(
            chunk_tokens=5000
        ).ingest([Document("a", "word " * 2500)]),
        "Neighbours are ... predecessors of ... in all; ...": lambda w: w.engine.ingest(
            [], neighbours=Neighbours(count=1, predecessors=2)
        ),
        "... passages without text are passed over, of ... sources, ... the first of them.": (
            lambda w: to_documents([LangChainDocument("")]) and w.logged()
        ),
        "document_ids is ...; give a list of strings.": lambda w: w.engine.delete("town-0"),
        "document_ids holds ...; give a list of strings.": lambda w: w.engine.delete([0]),  # type: ignore[list-item]
        "... chunks were given with ... embeddings; give one embedding a chunk.": lambda w: w.open(
            embedding=FewEmbeddings()
        ).ingest([town(0)]),
        "The embedding ... can't be used: it has to make one vector of each text, ...": lambda w: (
            w.open(embedding=NothingEmbedded())
        ),
        "The embedding ... can't be used: of several texts it makes ..., ...": (
            lambda w: w.open(embedding=NoVectors())
        ),
        "An embedding can't be used: ...": lambda w: w.open(embedding=NoNumbers()).ingest(
            [town(0)]
        ),
        "...: the id ... already names another text; ...": lambda w: rows(
            w, b'{"id": "a", "text": "one"}\n{"id": "a", "text": "two"}'
        ),
        "...: there is no such file or directory.": lambda w: list(
            read_documents([w.tmp / "none"])
        ),
        "...: can't read files that end in ...; accepted: ...": lambda w: list(
            read_documents([w.file("paper.pdf")])
        ),
        "... line ...: holds half a surrogate pair; ...": lambda w: row(w, {"text": "\ud83d"}),
        '... line ...: needs a JSON object with "text", or with "passages".': lambda w: row(w, []),
        '... line ...: "passages" must be a list of objects.': lambda w: row(w, {"passages": "a"}),
        '... line ...: "id" must be a string or a whole number.': lambda w: row(
            w, {"id": 1.5, "text": "a"}
        ),
        '... line ...: "..." must be a string, not ...': lambda w: row(w, {"text": 3}),
        '... line ...: "metadata" must be an object of strings, numbers and booleans.': (
            lambda w: row(w, {"text": "a", "metadata": {"tags": ["x"]}})
        ),
    }
)
