"""An engine, and the same one behind a server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.server import create_app
from tests.conftest import town
from tests.langchain.templates import WITH_TOOLS
from tests.remote.loopback import served


@pytest.fixture(scope="session")
def engine(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FusionEngine]:
    """Three towns, and a fourth in a scope of its own; its template knows tools."""
    store = tmp_path_factory.mktemp("remote") / "store"
    with FusionEngine.from_pretrained(model_dir, store=store, chunk_tokens=48) as engine:
        engine.model.tokenizer = AutoTokenizer.from_pretrained(model_dir, chat_template=WITH_TOOLS)
        north = replace(town(3), scope="north", metadata={"page": 7})
        engine.ingest([town(0), town(1), town(2), north])
        yield engine


@pytest.fixture
def base_url(engine: FusionEngine, socket_enabled: None) -> Iterator[str]:
    """Where a server over the same engine is."""
    with served(create_app(engine)) as address:
        yield address
