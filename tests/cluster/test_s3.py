"""Stores in S3: what tests over a directory say, over moto's S3, and what only a network does."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from fusionrag_integrations import AnswerSettings
from fusionrag_integrations.errors import StoreError
from fusionrag_integrations.langchain import ChatFusionRAG, FusionKVRetriever
from fusionrag_integrations.llama_index import FusionKVRetriever as LlamaIndexRetriever
from fusionrag_integrations.prompt import question_prompt
from fusionrag_integrations.store import Budgets
from fusionrag_integrations.store.kv.shared import object_name
from fusionrag_integrations.store.objects.base import Objects
from fusionrag_integrations.store.published.verifying import find_damage_at, repair_at
from tests.cluster.conftest import S3Server
from tests.conftest import document_ids
from tests.store.published.sharing import (
    QUESTION,
    SETTINGS,
    Open,
    ask,
    live_keys,
    reads_as_a_directory,
    same,
    towns,
)
from tests.store.published.test_objects import (  # noqa: F401
    test_an_attempt_whose_reply_was_lost_is_told_apart_from_another_s,
    test_entries_say_name_size_and_time,
    test_many_of_a_folder_are_found_as_a_few_are,
    test_of_several_that_create_a_name_one_does,
    test_ranges_are_read_as_far_as_there_is_anything,
    test_what_creates_exclusively_passes_the_trial,
    test_what_is_not_there_is_missing,
    test_what_is_written_is_read,
)


def test_answers_are_those_of_a_directory(opened: Open, url: str, tmp_path: Path) -> None:
    reader = reads_as_a_directory(opened, url, tmp_path / "store")
    assert reader.metrics().shared.moved_bytes > 0


def test_through_both_frameworks(opened: Open, url: str, tmp_path: Path) -> None:
    directory, shared = opened(tmp_path / "store"), opened(url)
    for engine in (directory, shared):
        engine.ingest(towns(3))
    answers = []
    for engine in (directory, shared):
        chat = ChatFusionRAG(engine=engine, max_tokens=8)
        documents = FusionKVRetriever(engine=engine, k=3).invoke(QUESTION)
        texts = [document.page_content for document in documents]
        nodes = LlamaIndexRetriever(engine=engine, similarity_top_k=3).retrieve(QUESTION)
        assert [node.text for node in nodes] == texts
        answers.append(chat.invoke(question_prompt(texts, QUESTION)).content)
    assert answers[0] == answers[1] != ""


@pytest.mark.long
def test_a_server_that_hangs_while_it_is_asked(opened: Open, url: str, s3_server: S3Server) -> None:
    writer = opened(url)
    writer.ingest(towns(3))
    wanted = ask(writer)
    reader = opened(url, budgets=Budgets(host=0, disk=0))
    assert same(ask(reader), wanted)
    s3_server.freeze()
    try:
        found = ask(reader)
    finally:
        s3_server.thaw()
    assert found.missed_chunks == 3  # computed afresh
    assert found.usage.reused_tokens == 0
    time.sleep(5.1)  # after which the storage is asked again
    assert same(ask(reader), wanted)


def test_a_server_that_hangs_during_an_ingest(opened: Open, url: str, s3_server: S3Server) -> None:
    writer = opened(url)
    frozen = threading.Event()

    def freeze(stage: str, done: int, total: int) -> None:
        if stage == "fused" and not frozen.is_set():
            frozen.set()
            s3_server.freeze()
            threading.Timer(4.0, s3_server.thaw).start()

    report = writer.ingest(towns(3), progress=freeze)
    assert report.fused_computed == 9
    assert list(find_damage_at(url)) == []
    assert same(ask(opened(url)), ask(writer))


def test_one_that_stays_away_ends_the_ingest_by_name(
    opened: Open, url: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusionrag_integrations.store.objects.fsspec_objects.PATIENCE", 0.0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # where nothing listens
    with pytest.raises(StoreError, match="can't be used"):
        opened(url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.url)
    writer = opened(url)
    writer.ingest(towns(2))
    assert document_ids(writer.store.catalog) == ["town-0", "town-1"]


@pytest.mark.parametrize("size", [0, 1 << 14, (1 << 14) + 100])
def test_a_record_that_was_cut_is_named_and_repaired(
    opened: Open, url: str, objects: Objects, size: int
) -> None:
    writer = opened(url)
    writer.ingest(towns(2))
    reader = opened(url, budgets=Budgets(host=0, disk=0))
    names = [object_name(key) for key in live_keys(reader)]
    for name in names:
        objects.write(name, [objects.read(name)[:size]])
    assert objects.existing(names) == set(names)
    assert [problem.error for problem in find_damage_at(url)] == ["KVCorruptError"] * len(names)
    assert ask(reader).usage.reused_tokens == 0
    assert all(problem.fixed for problem in repair_at(url))
    writer.ingest(towns(2))
    assert ask(reader).missed_chunks == 0


def test_streams_and_questions_at_once(opened: Open, url: str) -> None:
    opened(url).ingest(towns(4))
    reader = opened(url)
    prompts = [
        question_prompt([hit.chunk.text for hit in reader.store.search(text, 3)], QUESTION)
        for text in ("town number 1", "town number 2", "town number 3")
    ]
    together = reader.answer_all(prompts, SETTINGS)
    alone = [reader.answer(prompt, AnswerSettings(max_tokens=8)) for prompt in prompts]
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    assert all(answer.missed_chunks == 0 for answer in together)
