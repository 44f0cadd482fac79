"""An engine with documents, which the tests of the LangChain components share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fusionrag_integrations import FusionEngine
from tests.conftest import town


@pytest.fixture(scope="session")
def engine(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> FusionEngine:
    """Three towns, and a fourth in a scope of its own; for tests that only read."""
    store = tmp_path_factory.mktemp("langchain") / "store"
    engine = FusionEngine.from_pretrained(model_dir, store=store, chunk_tokens=48)
    north = replace(town(3), scope="north", metadata={"page": 7})
    engine.ingest([town(0), town(1), town(2), north])
    return engine
