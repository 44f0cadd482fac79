"""An engine with documents, which the tests of the LlamaIndex components share."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from fusionrag_integrations import FusionEngine
from tests.conftest import town


@pytest.fixture(scope="session")
def engine(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> FusionEngine:
    """Three towns, and a fourth in a scope of its own; for tests that only read."""
    store = tmp_path_factory.mktemp("llama_index") / "store"
    engine = FusionEngine.from_pretrained(model_dir, store=store, chunk_tokens=48)
    north = replace(town(3), scope="north", metadata={"page": 7})
    engine.ingest([town(0), town(1), town(2), north])
    return engine


@pytest.fixture(scope="session")
def plain_engine(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> FusionEngine:
    """One town, and a model whose tokenizer has no chat template."""
    path = tmp_path_factory.mktemp("plain")
    shutil.copytree(model_dir, path / "model")
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    (path / "model" / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(path / "model")
    engine = FusionEngine.from_pretrained(path / "model", store=path / "store", chunk_tokens=48)
    engine.ingest([town(0)])
    return engine
