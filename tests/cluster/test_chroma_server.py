"""An index on a Chroma server: what every index does, and what a server's own failures do to it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import Any
from uuid import uuid4

import pytest
from langchain_chroma import Chroma
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.vector_stores.chroma import ChromaVectorStore

from fusionrag_integrations import AnswerSettings, FusionEngine, Store
from fusionrag_integrations.documents.handles import KVHandle
from fusionrag_integrations.errors import StoreError
from fusionrag_integrations.langchain import FusionKVRetriever
from fusionrag_integrations.llama_index import FusionKVRetriever as LlamaIndexRetriever
from fusionrag_integrations.store.vector_index.base import VectorIndex
from fusionrag_integrations.store.vector_index.given import IndexElsewhere
from tests.cluster.chroma_server import PATIENCE, ChromaServer, chroma_server
from tests.cluster.chroma_writer import EMBEDDING
from tests.conftest import town
from tests.embeddings import LangChainLexical, LlamaIndexLexical
from tests.processes import in_child
from tests.store.contracts.test_vector_index import *  # noqa: F403 -- the contract's tests
from tests.synthetic_store import make_store

pytestmark = [pytest.mark.enable_socket, pytest.mark.contract]

ANY = {"title": {"$ne": "none"}}  # a filter that all chunks match, so that the index is asked


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChromaServer]:
    with chroma_server(tmp_path_factory.mktemp("chroma")) as server:
        yield server


@pytest.fixture
def client(server: ChromaServer) -> Iterator[Any]:
    with server.client() as client:
        yield client


@pytest.fixture
def index(client: Any, tmp_path: Path) -> Iterator[VectorIndex]:
    with closing(IndexElsewhere.of(client, tmp_path, uuid4().hex).index) as made:
        yield made


@pytest.fixture
def stopped(server: ChromaServer) -> Iterator[Callable[[], None]]:
    """Called, it kills the server, which runs again in the end."""
    yield server.kill
    server.start()


class Interrupting(LangChainLexical):
    """Calls something before a batch of texts is embedded; 1 is the first one."""

    before_batch: dict[int, Callable[[], None]] = {}  # noqa: RUF012 -- replaced, not changed

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        waiting = {batch - 1: call for batch, call in self.before_batch.items()}
        call = waiting.pop(0, None)
        self.before_batch = waiting
        if call:
            call()
        return super().embed_documents(texts)


def own(client: Any, store: Store) -> Any:
    return client.get_collection(f"fusionrag-{store.catalog.info.store_id}")


def found(store: Store, number: int) -> list[str]:
    return [hit.chunk.text for hit in store.search(str(number), 1, where=ANY)]


def answered(engine: FusionEngine) -> tuple[Any, ...]:
    engine.ingest([town(0), town(1)])
    hits = engine.store.search("Town number 1", 3, where=ANY)
    prompt = "\n\n".join([*(hit.chunk.text for hit in hits), "Where is house 1?"])
    answer = engine.answer(prompt, AnswerSettings(max_tokens=8))
    return [(hit.chunk.id, round(hit.score, 5)) for hit in hits], answer.token_ids, answer.usage


def test_an_engine_answers_as_over_a_directory(
    client: Any, model_dir: Path, tmp_path: Path
) -> None:
    with FusionEngine.from_pretrained(
        model_dir, store=tmp_path / "given", chunk_tokens=48, index=client
    ) as engine:
        on_server = answered(engine)
        assert own(client, engine.store).count() == 6
    with FusionEngine.from_pretrained(model_dir, store=tmp_path / "own", chunk_tokens=48) as engine:
        assert answered(engine) == on_server
    assert client.heartbeat()


def test_searches_go_on_once_the_server_is_back(
    server: ChromaServer, client: Any, tmp_path: Path, stopped: Callable[[], None]
) -> None:
    with make_store(tmp_path / "store", 4, EMBEDDING, index=client) as store:
        is_enough = Event()
        said: list[str] = []

        def search(number: int) -> int:
            right = 0
            while not is_enough.is_set():
                try:
                    assert found(store, number) == [str(number)]
                    right += 1
                except StoreError as error:
                    said.append(str(error))
            return right

        with ThreadPoolExecutor(3) as pool:
            try:
                searching = [pool.submit(search, number) for number in (3, 100, 239)]
                assert not is_enough.wait(0.5)
                stopped()
                assert not is_enough.wait(0.5)
                server.start()
                assert not is_enough.wait(0.5)
            finally:
                is_enough.set()
            assert all(search.result() > 10 for search in searching)
        assert said
        address = f"The Chroma server at http://127.0.0.1:{server.port} can't be reached: "
        assert {error[: len(address)] for error in said} == {address}
        assert found(store, 5) == ["5"]


def test_an_ingest_that_the_server_left_goes_on(
    server: ChromaServer,
    client: Any,
    model_dir: Path,
    tmp_path: Path,
    stopped: Callable[[], None],
) -> None:
    towns = [town(number) for number in range(40)]
    embedding = Interrupting()
    with FusionEngine.from_pretrained(
        model_dir, store=tmp_path, chunk_tokens=48, index=client, embedding=embedding
    ) as engine:
        engine.ingest(towns[:2])
        embedding.before_batch = {2: stopped}
        with pytest.raises(StoreError, match=rf"127\.0\.0\.1:{server.port} can't be reached"):
            engine.ingest(towns)
        assert not embedding.before_batch  # some chunks are on the server, and in no catalog
        assert engine.store.search("Town number 1", 1)[0].chunk.document_id == "town-1"
        with pytest.raises(StoreError, match="can't be reached"):
            engine.ingest(towns)
        with pytest.raises(StoreError, match="can't be reached"):
            engine.delete(["town-0"])
        server.start()
        engine.ingest(towns)
        ids = engine.store.catalog.chunks.ids()
        assert len(ids) == 120
        assert set(own(client, engine.store).get(include=[])["ids"]) == set(ids)
        hit = engine.store.search("Town number 39", 1, where=ANY)[0]
        assert hit.chunk.document_id == "town-39"


def test_a_collection_deleted_on_the_server_is_filled_again(client: Any, tmp_path: Path) -> None:
    with make_store(tmp_path / "store", 3, EMBEDDING, index=client) as store:
        client.delete_collection(own(client, store).name)
        assert found(store, 100) == ["100"]
        assert own(client, store).count() == 180


def test_a_reader_sees_what_another_process_writes(
    server: ChromaServer, client: Any, tmp_path: Path
) -> None:
    path = tmp_path / "store"
    with make_store(path, 5, EMBEDDING, chunks=6, index=client) as reader:
        assert found(reader, 8) == ["8"]
        command = [sys.executable, "-m", "tests.cluster.chroma_writer", str(path), str(server.port)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout
            assert writer.stdout.readline() == "added\n"
            assert found(reader, 44) == reader.search("44", 1)[0].chunk.text.split() == ["44"]
            writer.communicate("\n", timeout=PATIENCE)
        assert writer.returncode == 0
        assert found(reader, 44) != ["44"]
        assert own(client, reader).count() == 30


def test_a_forked_process_is_refused_and_the_parent_goes_on(client: Any, tmp_path: Path) -> None:
    with make_store(tmp_path / "store", 1, EMBEDDING, index=client) as store:
        assert in_child(lambda: found(store, 3)).startswith(
            "StoreError: The Chroma client of the store"
        )
        assert found(store, 3) == ["3"]


def test_a_forked_process_may_open_the_store_with_a_client_of_its_own(
    server: ChromaServer, client: Any, tmp_path: Path
) -> None:
    def search() -> str:
        with (
            server.client() as ours,
            Store.open(tmp_path / "store", EMBEDDING, index=ours) as again,
        ):
            return found(again, 3)[0]

    with make_store(tmp_path / "store", 1, EMBEDDING, index=client) as store:
        assert found(store, 3) == ["3"]
        assert in_child(search) == "3"


@pytest.fixture
def engine(model_dir: Path, tmp_path: Path) -> Iterator[FusionEngine]:
    with FusionEngine.from_pretrained(model_dir, store=tmp_path / "store", chunk_tokens=48) as made:
        made.ingest([town(0), town(1)])
        yield made


def texts() -> list[str]:
    """What another program keeps: paragraphs that the engine ingested, and one that it didn't."""
    kept = [text for number in range(2) for text in town(number).text.split("\n\n")]
    return [*kept, "Of town number 5 another program alone knows."]


def test_langchain_retrieves_what_another_program_keeps(engine: FusionEngine, client: Any) -> None:
    name = uuid4().hex
    others = Chroma(client=client, collection_name=name, embedding_function=LangChainLexical())
    others.add_texts(texts())
    retriever = FusionKVRetriever(
        engine=engine, retriever=others.as_retriever(search_kwargs={"k": 7})
    )
    documents = retriever.invoke("Town number 1")
    assert sorted(document.page_content for document in documents) == sorted(texts())
    without = [d.page_content for d in documents if KVHandle.from_metadata(d.metadata) is None]
    assert without == texts()[-1:]
    prompt = "\n\n".join([*(d.page_content for d in documents[:7]), "Which town?"])
    answer = engine.answer(prompt, AnswerSettings(max_tokens=2))
    assert answer.fused_chunks + answer.isolated_chunks >= 6


def test_llama_index_retrieves_what_another_program_keeps(
    engine: FusionEngine, client: Any
) -> None:
    collection = client.create_collection(uuid4().hex)
    others = ChromaVectorStore(chroma_collection=collection)
    others.add(LlamaIndexLexical()([TextNode(text=text) for text in texts()]))
    index = VectorStoreIndex.from_vector_store(others, embed_model=LlamaIndexLexical())
    retriever = LlamaIndexRetriever(engine=engine, retriever=index.as_retriever(similarity_top_k=7))
    nodes = retriever.retrieve("Town number 1")
    assert sorted(found.node.get_content() for found in nodes) == sorted(texts())
    without = [n.text for n in nodes if KVHandle.from_metadata(n.node.metadata) is None]
    assert without == texts()[-1:]


def test_one_collection_for_a_store_and_another_program(
    client: Any, model_dir: Path, tmp_path: Path
) -> None:
    name = uuid4().hex
    others = Chroma(client=client, collection_name=name, embedding_function=LangChainLexical())
    others.add_texts(texts(), metadatas=[{"source": f"notes/{i}"} for i in range(7)])
    collection = client.get_collection(name)
    with FusionEngine.from_pretrained(
        model_dir,
        store=tmp_path,
        chunk_tokens=48,
        index=collection,
        embedding=LangChainLexical(),
    ) as engine:
        for _ in range(2):  # what the store keeps there of its own isn't ingested
            FusionKVRetriever.from_chroma(others, engine=engine)
            assert engine.store.catalog.counts().chunks == 7
            assert collection.count() == 14
        hits = engine.store.search("Town number 1", 7, where=ANY)
        assert {hit.chunk.text for hit in hits} == set(texts())
        assert engine.delete([f"notes/{i}" for i in range(7)]) == 7
    assert sorted(collection.get()["documents"]) == sorted(texts())
