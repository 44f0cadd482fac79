"""Engines with documents, which the tests of the LlamaIndex components share."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from llama_index.core.instrumentation import get_dispatcher
from transformers import AutoTokenizer

from fusionrag_integrations import FusionEngine
from tests.conftest import town
from tests.llama_index.helpers import Noting
from tests.llama_index.modes import ingest_kinds


@pytest.fixture(scope="session")
def engine(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> FusionEngine:
    """Three towns, and a fourth in a scope of its own; for tests that only read."""
    store = tmp_path_factory.mktemp("llama_index") / "store"
    engine = FusionEngine.from_pretrained(model_dir, store=store, chunk_tokens=48)
    north = replace(town(3), scope="north", metadata={"page": 7})
    engine.ingest([town(0), town(1), town(2), north])
    return engine


@pytest.fixture
def empty_engine(model_dir: Path, tmp_path: Path) -> FusionEngine:
    """An engine with a store of its own, for tests that ingest."""
    return FusionEngine.from_pretrained(model_dir, store=tmp_path / "store")


@pytest.fixture(scope="session")
def plain_model_dir(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with a tokenizer that has no chat template."""
    path = tmp_path_factory.mktemp("plain") / "model"
    shutil.copytree(model_dir, path)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    (path / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def plain_engine(plain_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> FusionEngine:
    """One town, and a model that is no chat model."""
    store = tmp_path_factory.mktemp("plain-store") / "store"
    engine = FusionEngine.from_pretrained(plain_model_dir, store=store, chunk_tokens=48)
    engine.ingest([town(0)])
    return engine


@pytest.fixture(scope="session", params=["model_dir", "plain_model_dir"], ids=["chat", "plain"])
def kinds_engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> FusionEngine:
    """Every kind of chunk, each in a scope of its name; a chat model, and one that is none."""
    store = tmp_path_factory.mktemp("kinds") / "store"
    engine = FusionEngine.from_pretrained(request.getfixturevalue(request.param), store=store)
    ingest_kinds(engine)
    return engine


@pytest.fixture
def noting() -> Iterator[Noting]:
    handler, dispatcher = Noting(), get_dispatcher()
    dispatcher.add_event_handler(handler)
    yield handler
    dispatcher.event_handlers.remove(handler)
