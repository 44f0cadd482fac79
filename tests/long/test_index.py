"""The index of large stores: what damage does to it, and what deleting costs."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import pytest

from fusionrag_integrations.store.deletion import delete_documents
from fusionrag_integrations.store.kv.local import LocalKVFiles
from fusionrag_integrations.store.kv.record_files import RecordFiles
from fusionrag_integrations.store.repair import repair
from tests.damage import CONTENT, flipped
from tests.synthetic_store import (
    CHUNKS,
    RandomEmbedding,
    index_files,
    index_problems,
    make_store,
)

Report = Callable[[str, str, object, object], None]

EMBEDDING = RandomEmbedding(16)
DOCUMENTS = 17  # of 60 chunks: more than Chroma keeps outside of its HNSW files
SEARCHES = """
import sys
from pathlib import Path
from tests.long.test_index import EMBEDDING
from tests.synthetic_store import wrong_searches
sys.stdout.write(str(wrong_searches(Path(sys.argv[1]), range(1020), EMBEDDING)))
"""


@pytest.fixture(autouse=True)
def index_checked_here() -> None:
    """In a process of its own, as users have it: damaged graphs crash the one that reads them."""


def wrong(store: Path) -> int:
    """Searches that find another chunk, in a process that may crash: then all do."""
    command = [sys.executable, "-c", SEARCHES, str(store)]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        return DOCUMENTS * CHUNKS
    return int(run.stdout) if run.returncode == 0 else DOCUMENTS * CHUNKS


def test_damage_to_the_index_is_found_and_repaired(tmp_path: Path, report: Report) -> None:
    made = tmp_path / "made"
    make_store(made, DOCUMENTS, EMBEDDING).close()
    chance = random.Random(0)
    seen: Counter[str] = Counter()
    for file in index_files(made):
        for damage in (flipped, *CONTENT):
            store = shutil.copytree(made, tmp_path / "store")
            damage(store / file, chance)
            found, broken = bool(index_problems(store)), wrong(store)
            seen["done"] += 1
            seen["found"] += found
            seen["broken"] += broken > 0
            seen["unseen"] += broken > 0 and not found
            if found:
                list(repair(store))
                seen["wrong after repair"] += wrong(store) > 0
            shutil.rmtree(store)
    report(
        "Index",
        "Bits flipped, blocks overwritten, files cut, emptied and deleted in the index of 1,020 "
        "chunks",
        f"{seen['done']} damages, of which {seen['broken']} changed what searches find",
        f"{seen['unseen']} of them unseen by `verify`, {seen['wrong after repair']} wrong after "
        "`repair`",
    )
    assert seen["unseen"] == seen["wrong after repair"] == 0


@pytest.mark.parametrize("chunks", [10_000, 100_000])
@pytest.mark.parametrize("spread", [0.01, 100.0], ids=["similar", "diverse"])
def test_deletes(tmp_path: Path, report: Report, chunks: int, spread: float) -> None:
    embedding = RandomEmbedding(64, spread)
    corpus = make_store(tmp_path / "store", chunks // CHUNKS, embedding)
    records = RecordFiles(
        LocalKVFiles(tmp_path / "store" / "kv"), corpus.catalog.info.record_signature
    )
    corpus.search("1", 5)
    seconds = []
    for document in range(5):
        started = perf_counter()
        assert delete_documents(corpus, records, [f"d{document:05}"]) == 1
        seconds.append(perf_counter() - started)
        corpus.search("1", 5)
    report(
        "Deletes",
        f"A document of {CHUNKS} chunks deleted from {chunks:,} "
        f"{'similar' if spread < 1 else 'diverse'} chunks, after one bulk add and a search",
        "5 documents, one after another",
        f"the first took {seconds[0]:.2f} s, the slowest {max(seconds):.2f} s",
    )
    assert max(seconds) < 5.0
