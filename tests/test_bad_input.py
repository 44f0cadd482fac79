"""Mistakes that users make, through both frameworks and the command: each a clear error.

Nothing that was indexed before is lost by any of them.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from filelock import FileLock
from langchain_core.documents import Document as LangChainDocument
from llama_index.core import get_response_synthesizer
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.llms import ChatMessage
from llama_index.core.schema import TextNode

import fusionrag_integrations.langchain as lc
import fusionrag_integrations.llama_index as li
from fusionrag_integrations import AnswerSettings, Document, FusionEngine, Passage
from fusionrag_integrations.cli import main
from fusionrag_integrations.documents.types import DocumentKey
from fusionrag_integrations.errors import (
    InvalidInputError,
    PromptTooLongError,
    StoreError,
    StoreMismatchError,
    StoreNotFoundError,
    UnknownSelectorError,
)
from tests.conftest import document_ids, town

QUESTION = "Where is house 7 of town number 1?"


@pytest.fixture
def engine(engine: FusionEngine) -> FusionEngine:
    """Two towns of three chunks each."""
    engine.ingest([town(0), town(1)])
    return engine


@dataclass(frozen=True)
class Asked:
    """A way to ask a model a prompt, with settings given when it is made or per call."""

    make: Callable[..., Any]
    call: Callable[..., Any]


ASKED = {
    "langchain llm": Asked(lc.FusionRAGLLM, lambda llm, p, **s: llm.invoke(p, **s)),
    "langchain llm, streamed": Asked(lc.FusionRAGLLM, lambda llm, p, **s: list(llm.stream(p, **s))),
    "langchain chat": Asked(lc.ChatFusionRAG, lambda llm, p, **s: llm.invoke(p, **s)),
    "llama_index complete": Asked(li.FusionRAGLLM, lambda llm, p, **s: llm.complete(p, **s)),
    "llama_index stream": Asked(
        li.FusionRAGLLM, lambda llm, p, **s: list(llm.stream_complete(p, **s))
    ),
    "llama_index chat": Asked(
        li.FusionRAGLLM,
        lambda llm, p, **s: llm.chat([ChatMessage(role="user", content=p)], **s),
    ),
}
every_model = pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED.keys())

# What puts texts into an engine's store, by each framework's own means.
Ingests = Callable[[FusionEngine, list[str]], Any]
INGESTS: dict[str, Ingests] = {
    "langchain": lambda engine, texts: lc.FusionKVRetriever.from_documents(
        [LangChainDocument(text, metadata={"source": "new"}) for text in texts], engine=engine
    ),
    "llama_index": lambda engine, texts: li.FusionKVRetriever.from_nodes(
        [TextNode(id_=f"new-{i}", text=text) for i, text in enumerate(texts)], engine=engine
    ),
    "llama_index pipeline": lambda engine, texts: IngestionPipeline(
        transformations=[li.FusionKVTransform(engine=engine)]
    ).run(nodes=[TextNode(id_=f"new-{i}", text=text) for i, text in enumerate(texts)]),
}
every_ingest = pytest.mark.parametrize("ingest", INGESTS.values(), ids=INGESTS.keys())

RETRIEVERS: dict[str, Callable[..., Any]] = {
    "langchain": lambda question, **given: lc.FusionKVRetriever(**given).invoke(question),
    "llama_index": lambda question, **given: li.FusionKVRetriever(**given).retrieve(question),
}
every_retriever = pytest.mark.parametrize("search", RETRIEVERS.values(), ids=RETRIEVERS.keys())


class Command:
    """The `fusionrag` command on one store."""

    def __init__(self, store: Path, model: Path) -> None:
        self.store, self.model = store, model

    def __call__(self, name: str, *arguments: str, code: int = 1) -> str:
        model = ["--model", str(self.model)] if name in ("index", "ask") else []
        given = [name, *arguments, "--store", str(self.store), *model]
        result = CliRunner().invoke(main, given)
        assert result.exit_code == code, result.output
        return result.output


@pytest.fixture
def command(engine: FusionEngine, model_dir: Path) -> Command:
    return Command(engine.store.path, model_dir)


def assert_nothing_lost(engine: FusionEngine) -> None:
    """Both towns are there, found, and answered from fused KV, and the store takes more."""
    for number in (0, 1):
        records = engine.store.catalog.chunks.records(
            engine.store.catalog.chunks.ids([DocumentKey(f"town-{number}")])
        )
        texts = [record.chunk.text for record in records.values()]
        assert "\n\n".join(texts) == town(number).text
        answer = engine.answer("\n\n".join(texts) + "\n\nWhere is the fox?")
        assert answer.fused_chunks + answer.isolated_chunks == 3
    found = engine.store.search(QUESTION, 20)
    assert {hit.chunk.document_id for hit in found} >= {"town-0", "town-1"}
    engine.ingest([town(2)])
    assert engine.store.catalog.counts().fused_chunks == engine.store.catalog.counts().chunks


class TestPrompts:
    @every_model
    def test_one_longer_than_the_context(self, engine: FusionEngine, asked: Asked) -> None:
        prompt = "the river and the bridge " * 1000
        with pytest.raises(PromptTooLongError, match=r"holds 2048.*Retrieve fewer or shorter"):
            asked.call(asked.make(engine=engine), prompt)

    def test_one_longer_than_the_context_by_the_command(self, command: Command) -> None:
        said = command("ask", "the river and the bridge " * 1000)
        assert "PromptTooLongError" in said
        assert "2048" in said

    @every_model
    @pytest.mark.parametrize("prompt", ["", "  \n"])
    def test_an_empty_one(self, engine: FusionEngine, asked: Asked, prompt: str) -> None:
        with pytest.raises(InvalidInputError, match="empty"):
            asked.call(asked.make(engine=engine), prompt)

    @every_retriever
    @pytest.mark.parametrize("question", ["", " \t\n"])
    def test_an_empty_question(self, engine: FusionEngine, search: Any, question: str) -> None:
        with pytest.raises(InvalidInputError, match="The question is empty"):
            search(question, engine=engine)

    def test_an_empty_question_by_the_command(self, command: Command) -> None:
        assert "InvalidInputError: The question is empty" in command("ask", " ")


class TestSettings:
    @every_model
    def test_an_unknown_selector(self, engine: FusionEngine, asked: Asked) -> None:
        with pytest.raises(UnknownSelectorError, match=r"'best'.*none, all, random, cacheblend"):
            asked.call(asked.make(engine=engine), QUESTION, selector="best")
        with pytest.raises(ValueError, match=r"'best'.*none, all, random, cacheblend"):
            asked.make(engine=engine, selector="best")

    def test_an_unknown_selector_by_the_command(self, command: Command) -> None:
        said = command("ask", QUESTION, "--selector", "best")
        assert "UnknownSelectorError" in said
        assert "none, all, random, cacheblend" in said

    @every_model
    @pytest.mark.parametrize("ratio", [-0.1, 1.01, 15.0, float("nan")])
    def test_a_ratio_out_of_bounds(self, engine: FusionEngine, asked: Asked, ratio: float) -> None:
        with pytest.raises(ValueError, match=r"ratio is .*must lie in \[0, 1\]"):
            asked.make(engine=engine, ratio=ratio)
        with pytest.raises(InvalidInputError, match=r"ratio is .*must lie in \[0, 1\]"):
            asked.call(asked.make(engine=engine), QUESTION, ratio=ratio)

    def test_a_ratio_out_of_bounds_by_the_command(self, command: Command) -> None:
        assert "'--ratio': 15.0 is not in the" in command("ask", QUESTION, "--ratio", "15", code=2)


class TestKindsOfValues:
    def test_handles_of_documents_without_one_are_passed_over(self, engine: FusionEngine) -> None:
        llm = lc.FusionRAGLLM(engine=engine, max_tokens=2)
        assert llm.invoke(QUESTION, handles=[None]) == llm.invoke(QUESTION)
        with pytest.raises(InvalidInputError, match="give a tuple of KVHandle"):
            llm.invoke(QUESTION, handles="chunk")

    def test_metadata_that_is_no_unicode(self, engine: FusionEngine) -> None:
        with pytest.raises(InvalidInputError, match="Metadata of document 'bad' can't be stored"):
            engine.ingest([Document("bad", "text", metadata={"author": "half \ud83d"})])

    def test_texts_questions_and_ids_that_are_no_strings(self, engine: FusionEngine) -> None:
        with pytest.raises(InvalidInputError, match="passage's text is None"):
            Passage(None)  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match="text of document 'a' is None"):
            Document("a", None)  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match="question is None"):
            engine.store.search(None)  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match=r"document_ids holds .*give a list of strings"):
            engine.delete([Path("town-0")])  # type: ignore[list-item]

    def test_what_is_no_document(self, engine: FusionEngine) -> None:
        foreign: Any = [LangChainDocument("text")]
        with pytest.raises(InvalidInputError, match="adapters' to_documents makes it"):
            engine.ingest(foreign)
        single: Any = town(5)
        with pytest.raises(InvalidInputError, match="Give ingest a list of documents"):
            engine.ingest(single)

    @every_model
    def test_a_prompt_that_is_no_unicode(self, engine: FusionEngine, asked: Asked) -> None:
        with pytest.raises(InvalidInputError, match="half a surrogate pair"):
            asked.call(asked.make(engine=engine), "half \ud83d of it")

    @pytest.mark.parametrize("scopes", ["north", 5, [1]])
    def test_scopes_that_are_no_strings(self, engine: FusionEngine, scopes: Any) -> None:
        with pytest.raises(InvalidInputError, match="give a list of strings"):
            engine.store.search(QUESTION, scopes=scopes)
        with pytest.raises(InvalidInputError, match="give a tuple of strings"):
            AnswerSettings(scopes=tuple(scopes) if isinstance(scopes, list) else scopes)

    def test_messages_that_the_template_refuses(
        self, engine: FusionEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        template = "{{ raise_exception('Conversation roles must alternate') }}"
        monkeypatch.setattr(engine.model.tokenizer, "chat_template", template)
        with pytest.raises(InvalidInputError, match=r"refuses these messages: .*must alternate"):
            lc.ChatFusionRAG(engine=engine).invoke("Where?")

    def test_a_question_too_long_to_leave_room_for_context(self, engine: FusionEngine) -> None:
        llm = li.FusionRAGLLM(engine=engine)
        synthesizer = get_response_synthesizer(llm=llm, prompt_helper=llm.prompt_helper())
        with pytest.raises(PromptTooLongError, match="without any context"):
            synthesizer.get_response("where is the fox " * 1000, [town(0).text])


class TestAnEmptyCorpus:
    @pytest.fixture
    def empty(self, model_dir: Path, tmp_path: Path) -> FusionEngine:
        return FusionEngine.from_pretrained(model_dir, store=tmp_path / "empty")

    @every_retriever
    def test_has_nothing_to_find_and_logs_it(
        self, empty: FusionEngine, search: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert search(QUESTION, engine=empty) == []
        assert "holds no chunks: ingest documents first" in caplog.text

    @every_model
    def test_answers_by_computing_everything(self, empty: FusionEngine, asked: Asked) -> None:
        assert asked.call(asked.make(engine=empty, max_tokens=2), QUESTION)

    def test_is_refused_by_the_command(self, model_dir: Path, empty: FusionEngine) -> None:
        command = Command(empty.store.path, model_dir)
        said = command("ask", QUESTION)
        assert "holds no chunks; index documents first" in said

    def test_a_directory_without_documents(self, command: Command, tmp_path: Path) -> None:
        (tmp_path / "nothing").mkdir()
        said = command("index", str(tmp_path / "nothing"), code=1)
        assert "DocumentFormatError: No documents found" in said


class TestDocuments:
    @every_ingest
    def test_a_chunk_longer_than_the_context(self, engine: FusionEngine, ingest: Ingests) -> None:
        long = " ".join(f"word{i}" for i in range(1_000))
        with pytest.raises(InvalidInputError, match=r"Chunk 0 of .*'new.* context holds 2048"):
            ingest(engine, [long])
        assert_nothing_lost(engine)

    def test_a_chunk_longer_than_the_context_by_the_command(
        self, model_dir: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "long.txt").write_text(" ".join(f"word{i}" for i in range(1_000)))
        command = Command(tmp_path / "store", model_dir)
        said = command("index", str(tmp_path / "long.txt"), "--chunk-tokens", "5000")
        assert "the model's context holds 2048" in said
        assert "smaller chunk_tokens" in said

    @pytest.mark.parametrize("framework", ["langchain", "llama_index"])
    def test_text_that_is_no_unicode(self, engine: FusionEngine, framework: str) -> None:
        with pytest.raises(InvalidInputError, match=r"'new.*half a surrogate pair at character 5"):
            INGESTS[framework](engine, ["half \ud83d of it"])
        assert_nothing_lost(engine)

    def test_a_file_that_is_no_utf8(self, command: Command, tmp_path: Path) -> None:
        (tmp_path / "latin.txt").write_bytes("first line\ncaf\u00e9".encode("latin-1"))
        said = command("index", str(tmp_path / "latin.txt"))
        assert "DocumentFormatError" in said
        assert "latin.txt, line 2: not UTF-8 text" in said

    def test_a_bad_document_among_good_ones(self, engine: FusionEngine) -> None:
        texts = {"town-5": town(5).text, "bad": "half \ud83d", "town-6": town(6).text}
        with pytest.raises(InvalidInputError, match="surrogate"):
            engine.ingest(
                (Document(name, text) for name, text in texts.items()), delete_others=True
            )
        assert document_ids(engine.store.catalog) == ["town-0", "town-1", "town-5"]
        assert_nothing_lost(engine)


class TestModels:
    def test_a_directory_that_is_no_model(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInputError, match=r"can't be loaded|config\.json"):
            FusionEngine.from_pretrained(tmp_path, store=tmp_path / "store")
        assert not (tmp_path / "store").exists()

    def test_a_directory_that_is_no_model_by_the_command(
        self, engine: FusionEngine, tmp_path: Path
    ) -> None:
        command = Command(engine.store.path, tmp_path)
        assert "InvalidInputError" in command("ask", QUESTION)
        assert str(tmp_path) in command("ask", QUESTION)

    @pytest.fixture
    def other(self, model_dir: Path, tmp_path: Path) -> Path:
        """The same model with another RoPE base."""
        path = tmp_path / "other"
        path.mkdir()
        for file in model_dir.iterdir():
            (path / file.name).write_bytes(file.read_bytes())
        config = json.loads((path / "config.json").read_text())
        config["rope_parameters"] = {"rope_type": "default", "rope_theta": 5_000.0}
        (path / "config.json").write_text(json.dumps(config))
        return path

    def test_a_store_of_another_model(self, engine: FusionEngine, other: Path) -> None:
        with pytest.raises(StoreMismatchError, match=r"was made by .*Load that model, or make"):
            FusionEngine.from_pretrained(other, store=engine.store.path)
        assert_nothing_lost(engine)

    def test_a_store_of_another_model_by_the_command(
        self, engine: FusionEngine, other: Path
    ) -> None:
        assert "StoreMismatchError" in Command(engine.store.path, other)("ask", QUESTION)


class TestStores:
    @pytest.mark.parametrize("retriever", [lc.FusionKVRetriever, li.FusionKVRetriever])
    def test_one_that_is_missing(self, retriever: Any, tmp_path: Path) -> None:
        with pytest.raises(StoreNotFoundError, match="There is no store at"):
            retriever.from_store(tmp_path / "none")
        assert not (tmp_path / "none").exists()

    @pytest.mark.parametrize("name", ["ask", "delete", "inspect", "verify"])
    def test_one_that_is_missing_by_the_command(
        self, name: str, tmp_path: Path, model_dir: Path
    ) -> None:
        words = ["x"] if name in ("ask", "delete") else []
        said = Command(tmp_path / "none", model_dir)(name, *words)
        assert "StoreNotFoundError: There is no store at" in said
        assert not (tmp_path / "none").exists()

    @every_ingest
    def test_two_ingests_at_once(self, engine: FusionEngine, ingest: Ingests) -> None:
        with FileLock(engine.store.path / "writing.lock"):
            with pytest.raises(StoreError, match="Another ingest or delete is changing the store"):
                ingest(engine, ["A new text."])
            assert li.FusionKVRetriever(engine=engine).retrieve(QUESTION)
        assert_nothing_lost(engine)

    def test_two_ingests_at_once_by_the_command(
        self, engine: FusionEngine, command: Command, tmp_path: Path
    ) -> None:
        (tmp_path / "new.txt").write_text("A new text.")
        with FileLock(engine.store.path / "writing.lock"):
            for arguments in (["index", str(tmp_path / "new.txt")], ["delete", "town-0"]):
                assert "Another ingest or delete is changing" in command(*arguments)
            command("ask", QUESTION, "--max-tokens", "2", code=0)
        assert_nothing_lost(engine)


@contextmanager
def disk_full(engine: FusionEngine, where: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No byte more for the KV files, or no page more for the catalog."""
    with monkeypatch.context() as patch:
        if where == "kv":

            def full(_: int) -> None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            patch.setattr("fusionrag_integrations.support.atomic_files.os.fsync", full)
        else:
            connect = sqlite3.connect

            def limited(*args: Any, **settings: Any) -> sqlite3.Connection:
                db = connect(*args, **settings)
                (pages,) = db.execute("PRAGMA page_count").fetchone()
                db.execute(f"PRAGMA max_page_count = {pages}")
                return db

            patch.setattr(sqlite3, "connect", limited)
            replace_by_a_copy(engine.store.catalog.path)
        yield
    replace_by_a_copy(engine.store.catalog.path)


def replace_by_a_copy(catalog: Path) -> None:
    """As a backup is put back: an open catalog connects anew."""
    shutil.copy(catalog, copy := catalog.with_suffix(".copy"))
    copy.replace(catalog)


class TestAFullDisk:
    @every_ingest
    @pytest.mark.parametrize(("where", "error"), [("kv", "No space left"), ("catalog", "full")])
    def test_is_named_and_the_next_ingest_goes_on(
        self,
        engine: FusionEngine,
        ingest: Ingests,
        where: str,
        error: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        texts = [f"Number {i} of many new texts that need room. " * 12 for i in range(8)]
        with (
            disk_full(engine, where, monkeypatch),
            pytest.raises(StoreError, match=error),
        ):
            ingest(engine, texts)
        assert not list(engine.store.path.glob("kv/tmp/*"))
        assert_nothing_lost(engine)
        ingest(engine, texts)
        assert engine.store.search("Number 3 of many new texts", 1)[0].handle.fused_key

    def test_is_named_by_the_command(
        self, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        (tmp_path / "new.txt").write_text("A new text.")
        monkeypatch.setattr("fusionrag_integrations.support.atomic_files.os.fsync", full)
        said = command("index", str(tmp_path / "new.txt"))
        assert "StoreError: Can't write" in said
        assert "No space left on device" in said


@pytest.fixture
def read_only(engine: FusionEngine, model_dir: Path, tmp_path: Path) -> Iterator[Path]:
    """The store without permission to write, for root too, which is another user meanwhile."""
    engine.store.close()
    store = engine.store.path
    for path in [store, *store.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    private = [tmp_path, *tmp_path.parents, model_dir, *model_dir.iterdir()]
    opened = [p for p in private if p.stat().st_mode & 0o077 == 0]
    modes = {p: p.stat().st_mode for p in opened}
    for path in opened:
        path.chmod(modes[path] | 0o055)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield store
    os.seteuid(user)
    for path, mode in modes.items():
        path.chmod(mode)
    for path in [store, *store.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)


class TestAReadOnlyStore:
    """Whoever may read it may ask; whoever writes is told."""

    def test_is_searched_and_answered_from(self, read_only: Path, model_dir: Path) -> None:
        engine = FusionEngine.from_pretrained(model_dir, store=read_only)
        for search in RETRIEVERS.values():
            assert len(search(QUESTION, engine=engine)) == 5
        answer = engine.answer(f"{town(0).text}\n\n{QUESTION}")
        assert (answer.fused_chunks, answer.isolated_chunks, answer.missed_chunks) == (2, 1, 0)
        assert lc.FusionKVRetriever.from_store(read_only).invoke(QUESTION)

    @every_ingest
    def test_takes_nothing_new(self, read_only: Path, model_dir: Path, ingest: Ingests) -> None:
        engine = FusionEngine.from_pretrained(model_dir, store=read_only)
        with pytest.raises(StoreError, match=r"can't be written.*needs no writing"):
            ingest(engine, ["A new text."])
        with pytest.raises(StoreError, match=r"can't be written.*needs no writing"):
            engine.delete(["town-0"])

    def test_is_told_by_the_command(self, read_only: Path, model_dir: Path) -> None:
        command = Command(read_only, model_dir)
        command("ask", QUESTION, "--max-tokens", "2", code=0)
        command("inspect", code=0)
        command("verify", code=0)
        assert "can't be written" in command("delete", "town-0")
        assert "can't be written" in command("index", __file__.replace("test_bad_input.py", ""))


class TestAnInterrupt:
    """At any step of an ingest; the state machine of live corpora tries many more."""

    @pytest.mark.parametrize("stage", ["catalog", "embed", "isolated", "fused"])
    @pytest.mark.parametrize("framework", ["langchain", "llama_index"])
    def test_loses_nothing(self, engine: FusionEngine, framework: str, stage: str) -> None:
        def progress(at: str, done: int, total: int) -> None:
            if at == stage and done >= total // 2:
                raise KeyboardInterrupt

        texts = [f"Number {i} of several new texts by the river." for i in range(4)]

        def ingest(**given: Any) -> None:
            if framework == "langchain":
                documents = [LangChainDocument(t, metadata={"source": t}) for t in texts]
                lc.FusionKVRetriever.from_documents(documents, engine=engine, **given)
            else:
                nodes = [TextNode(id_=text, text=text) for text in texts]
                li.FusionKVRetriever.from_nodes(nodes, engine=engine, **given)

        with pytest.raises(KeyboardInterrupt):
            ingest(progress=progress)
        assert_nothing_lost(engine)
        ingest()
        assert engine.store.catalog.counts().fused_chunks == 13


class TestTheCommand:
    """Says in one line what was wrong with what it was given; never a traceback."""

    @pytest.mark.parametrize(
        "embedding",
        ["json:dumps", "json", "json:loads", ":", "", "os:environ", "tests.test_bad_input:Command"],
    )
    def test_an_embedding_that_is_none(self, command: Command, embedding: str) -> None:
        said = command("ask", QUESTION, "--embedding", embedding)
        assert "InvalidInputError" in said

    @pytest.mark.parametrize("value", ["nan", "1e400", "-1", "2"])
    def test_numbers_that_are_none(self, command: Command, value: str) -> None:
        said = command("ask", QUESTION, "--ratio", value, code=2)
        assert "Invalid value for '--ratio'" in said

    def test_numbers_without_bounds(self, model_dir: Path, tmp_path: Path) -> None:
        (tmp_path / "new.txt").write_text("A new text.")
        index = Command(tmp_path / "store", model_dir)
        for tokens in (str(10**20), "-1", "0"):
            said = index("index", str(tmp_path / "new.txt"), "--chunk-tokens", tokens, code=2)
            assert "Invalid value for '--chunk-tokens'" in said
        said = index("index", str(tmp_path / "new.txt"), "--chunk-tokens", "15")
        assert "InvalidInputError: chunk_tokens is 15" in said
        assert not (tmp_path / "store").exists()

    @pytest.mark.parametrize("name", ["ask", "delete", "inspect", "verify", "repair"])
    def test_a_store_that_is_no_directory(self, name: str, model_dir: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("text")
        words = ["x"] if name in ("ask", "delete") else []
        Command(tmp_path / "file" / "store", model_dir)(name, *words)

    @pytest.mark.parametrize("content", ["[" * 100_000, "[1]", "null", "", "\x00"])
    @pytest.mark.parametrize("name", ["store.json", "calibration.json"])
    def test_files_of_a_store_that_are_odd(self, command: Command, name: str, content: str) -> None:
        (command.store / name).write_text(content)
        if name == "calibration.json":
            assert "is no calibration" in command("ask", QUESTION)
        else:
            assert "store.json" in command("verify")
            assert "fixed" in command("repair", code=0)

    @pytest.mark.parametrize("name", ["store.json", "calibration.json"])
    def test_pipes_in_the_place_of_files_hang_nothing(self, command: Command, name: str) -> None:
        (command.store / name).unlink(missing_ok=True)
        os.mkfifo(command.store / name)
        if name == "calibration.json":
            assert "not a regular file" in command("ask", QUESTION)
        else:
            assert "not a regular file" in command("verify")

    def test_says_what_it_passed_over(self, command: Command, tmp_path: Path) -> None:
        (tmp_path / "docs" / ".git").mkdir(parents=True)
        (tmp_path / "docs" / "new.txt").write_text("A new text.")
        said = command("index", str(tmp_path / "docs"), code=0)
        assert "Passed over 1: " in said
        assert "1 documents added" in said

    @pytest.mark.parametrize("name", ["inspect", "verify", "repair"])
    def test_a_path_that_is_no_unicode(self, name: str, model_dir: Path, tmp_path: Path) -> None:
        said = Command(tmp_path / "store\udcff", model_dir)(name)
        assert "StoreNotFoundError" in said
