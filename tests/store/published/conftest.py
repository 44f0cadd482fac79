"""Storages that need no network: a directory, and fsspec's in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.store.objects.base import Objects
from fusionrag_integrations.store.objects.opening import open_objects
from tests.store.published.sharing import Open


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's working copies are."""
    monkeypatch.setenv("FUSIONRAG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file://{tmp_path}/shared" if request.param == "file" else f"memory://{uuid4().hex}"


@pytest.fixture
def objects(url: str) -> Iterator[Objects]:
    opened = open_objects(url)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def model(model_dir: Path) -> CausalModel:
    return CausalModel.load(model_dir)


@pytest.fixture
def opened(model: CausalModel) -> Iterator[Open]:
    """Opens engines, as if each were another machine's, and closes them at the end."""
    with ExitStack() as engines:

        def opener(store: str | Path, **given: Any) -> FusionEngine:
            engine = FusionEngine.open(model, store, **{"chunk_tokens": 48} | given)
            return engines.enter_context(engine)

        yield opener
