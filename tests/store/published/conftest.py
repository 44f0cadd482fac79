"""Storages that need no network: a directory, and fsspec's in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from fusionrag_integrations.store.objects.base import Objects
from fusionrag_integrations.store.objects.opening import open_objects


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
