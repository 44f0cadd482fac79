"""Two processes over one store: what one writes, the other finds, and neither loses anything."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fusionrag_integrations import AnswerSettings, FusionEngine
from fusionrag_integrations.documents.handles import document_order
from fusionrag_integrations.store.vector_index.exact import ExactSearch
from tests.conftest import town

WRITER = """
import sys
from fusionrag_integrations import FusionEngine
from tests.conftest import town

model, store = sys.argv[1:]
engine = FusionEngine.from_pretrained(model, store=store)
for line in sys.stdin:
    verb, *numbers = line.split()
    if verb == "ingest":
        engine.ingest([town(int(number)) for number in numbers])
    elif verb == "delete":
        engine.delete([f"town-{number}" for number in numbers])
    else:
        hits = engine.store.search("town", 99, scopes=[""])
        print(*sorted({hit.chunk.document_id for hit in hits}))
    print("done", flush=True)
"""
Writer = Callable[[str], list[str]]


@pytest.fixture
def other(engine: FusionEngine, model_dir: Path) -> Iterator[Writer]:
    """Does in another process what a line says: "ingest 1 2", "delete 1" or "search"."""
    arguments = [sys.executable, "-c", WRITER, str(model_dir), str(engine.store.path)]
    process = subprocess.Popen(
        arguments,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
    )

    def do(line: str) -> list[str]:
        assert process.stdin
        assert process.stdout
        process.stdin.write(line + "\n")
        process.stdin.flush()
        printed: list[str] = []
        for said in process.stdout:
            if said.strip() == "done":
                return printed
            printed += said.split()
        raise AssertionError("The other process ended.")

    yield do
    process.communicate(timeout=30)


def found(engine: FusionEngine, scopes: list[str] | None) -> list[str]:
    hits = engine.store.search("town", 99, scopes=scopes)
    return sorted({hit.chunk.document_id for hit in hits})


def test_each_finds_what_the_other_wrote(engine: FusionEngine, other: Writer) -> None:
    engine.ingest([town(0)])
    assert other("search") == ["town-0"]
    for scopes in (None, [""]):
        other("ingest 1 2")
        assert found(engine, scopes) == ["town-0", "town-1", "town-2"]
        other("delete 0 2")
        assert found(engine, scopes) == ["town-1"]
        engine.ingest([town(0)])
        assert other("search") == ["town-0", "town-1"]
    text = town(1).text
    as_stored = AnswerSettings(corrected=False)
    assert engine.answer(f"{text}\n\nWhere is the fox?", as_stored).fused_chunks == 3


def test_writers_that_take_turns_lose_nothing(
    engine: FusionEngine, other: Writer, model_dir: Path
) -> None:
    engine.ingest([town(0)])
    for turn in range(3):
        other(f"ingest {10 + turn}")
        engine.ingest([town(20 + turn)])
    expected = sorted(["town-0", *(f"town-{10 * i + turn}" for i in (1, 2) for turn in range(3))])
    assert found(engine, None) == other("search") == expected
    again = FusionEngine.from_pretrained(model_dir, store=engine.store.path)
    assert found(again, [""]) == expected
    assert again.store.catalog.counts().fused_chunks == 21


def test_a_document_that_is_replaced_while_it_is_searched_is_found(
    engine: FusionEngine, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.ingest([town(0)])
    other = FusionEngine.from_pretrained(model_dir, store=engine.store.path)
    changed = replace(town(0), text=town(0).text.replace("fox", "wolf"))
    changes = [lambda: other.ingest([changed]), lambda: engine.ingest([town(0)])]
    search = ExactSearch.search

    def meanwhile(index: ExactSearch, *arguments: Any) -> list[tuple[str, float]]:
        found = search(index, *arguments)
        if changes:
            changes.pop(0)()
        return found

    monkeypatch.setattr(ExactSearch, "search", meanwhile)
    hits = engine.store.search("river", 9)
    assert not changes
    assert "\n\n".join(hit.chunk.text for hit in document_order(hits)) == town(0).text
