"""An empty place for records, for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusionrag_integrations.store.kv.local import LocalKVFiles
from fusionrag_integrations.store.kv.record_files import RecordFiles
from tests.records.writer import SIGNATURE


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "kv"


@pytest.fixture
def files(directory: Path) -> RecordFiles:
    return RecordFiles(LocalKVFiles(directory), SIGNATURE)
