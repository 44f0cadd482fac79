"""What tests of stores at URLs ask and compare."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from fusionrag_integrations import Answer, AnswerSettings, Document, FusionEngine
from fusionrag_integrations.prompt import question_prompt
from fusionrag_integrations.store.objects.opening import open_objects
from fusionrag_integrations.store.published.writer_lease import FOLDER
from tests.conftest import town

SETTINGS = AnswerSettings(max_tokens=8)
QUESTION = "Where does the fox of town number 2 jump?"

Open = Callable[..., FusionEngine]
"""Opens an engine over a store, which is closed at the test's end."""


def ask(engine: FusionEngine, question: str = QUESTION, **settings: Any) -> Answer:
    """The answer over the nearest chunks, which must be found."""
    hits = engine.store.search(question, 3)
    assert hits
    prompt = question_prompt([hit.chunk.text for hit in hits], question)
    return engine.answer(prompt, replace(SETTINGS, **settings))


def same(one: Answer, other: Answer) -> bool:
    return (one.text, one.usage, one.fallbacks) == (other.text, other.usage, other.fallbacks)


def reads_as_a_directory(opened: Open, url: str, directory: Path) -> FusionEngine:
    """Checks that a writer and a reader at a URL answer as a store in a directory; the reader."""
    alone, writer = opened(directory), opened(url)
    for engine in (alone, writer):
        engine.ingest(towns(4))
    reader = opened(url)
    assert live_keys(reader) == live_keys(alone)
    wanted = ask(alone)
    assert wanted.usage.reused_tokens > 0
    for engine in (writer, reader):
        assert same(ask(engine), wanted)
    return reader


def expire(url: str) -> None:
    """As if a minute had passed since the writer was killed."""
    with open_objects(url) as objects:
        for entry in list(objects.entries(FOLDER)):
            note = json.loads(objects.read(entry.name)) | {"until": 0.0}
            objects.write(entry.name, [json.dumps(note).encode()])


def towns(count: int) -> list[Document]:
    return [town(number) for number in range(count)]


def live_keys(engine: FusionEngine) -> set[str]:
    return engine.store.catalog.kv.live_keys()
