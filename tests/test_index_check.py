"""A damaged index is found whatever it does to the process that reads it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fusionrag_integrations.store.repair import repair
from tests.synthetic_store import RandomEmbedding, index_problems, make_store, wrong_searches


@pytest.fixture(autouse=True)
def index_checked_here() -> None:
    """In a process of its own, as always."""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As many chunks as Chroma keeps in HNSW files."""
    path = tmp_path_factory.mktemp("large") / "store"
    make_store(path, 1, RandomEmbedding(8), chunks=1010).close()
    return path


def links_overwritten(graph: Path) -> None:
    """A vector's row: how many neighbours it has, which, its 8 numbers, its label."""
    row = np.dtype([("count", "<i4"), ("links", "<i4", 64), ("rest", "V40")])
    rows = np.fromfile(graph / "data_level0.bin", row)
    rows["count"], rows["links"] = 64, 0x7FFFFFFF
    rows.tofile(graph / "data_level0.bin")


def ids_changed(graph: Path) -> None:
    """Two chunks' ids in each other's place: both maps are as they should be, but for that."""
    content = (graph / "index_metadata.pickle").read_bytes()
    content = content.replace(b"c0000007", b"c000000X").replace(b"c0000008", b"c0000007")
    (graph / "index_metadata.pickle").write_bytes(content.replace(b"c000000X", b"c0000008"))


@pytest.mark.parametrize(
    ("damage", "said"),
    [(links_overwritten, "crashes"), (ids_changed, "aren't those of the catalog")],
)
def test_damaged_graphs_are_found_and_made_anew(
    large: Path, tmp_path: Path, damage: Callable[[Path], None], said: str
) -> None:
    store = shutil.copytree(large, tmp_path / "store")
    (pickled,) = store.glob("index/*/index_metadata.pickle")
    damage(pickled.parent)
    (problem,) = index_problems(store)
    assert said in problem.message
    assert ("index", True) in [(found.area, found.fixed) for found in repair(store)]
    assert wrong_searches(store, range(0, 1010, 10), RandomEmbedding(8)) == 0


def test_a_check_that_hangs_is_ended(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusionrag_integrations.store.vector_index.check._SECONDS", 0.0)
    monkeypatch.setattr("fusionrag_integrations.store.vector_index.check._SECONDS_PER_CHUNK", 0.0)
    (problem,) = index_problems(large)
    assert "doesn't end within" in problem.message


def test_an_intact_index_has_no_faults_wherever_the_check_is_started(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.chdir(tmp_path)
    assert index_problems(large) == []
