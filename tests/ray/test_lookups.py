"""What a look-up has found, read off its bodies."""

from __future__ import annotations

import json
from typing import Any

from fusionrag_integrations.documents.handles import KVHandle
from fusionrag_integrations.ray.lookups import Found


def handle(name: str) -> KVHandle:
    return KVHandle(name, f"isolated {name}", f"fused {name}")


def found(asked: Any, *rows: Any) -> Found:
    return Found.of(json.dumps(asked).encode(), json.dumps({"data": rows}).encode())


def row(name: str, **more: Any) -> dict[str, Any]:
    fields = {"chunk_id": name, "isolated_key": f"isolated {name}", "fused_key": f"fused {name}"}
    return {"handle": fields, **more}


def test_chunks_of_a_search() -> None:
    seen = found({"query": "?"}, row("a", text="12"), row("b", text="123"), row("c", text="1"))
    assert seen.handles == (handle("a"), handle("b"), handle("c"))
    assert seen.needed == {"isolated a": 2, "fused b": 3, "fused c": 1}  # as a prompt reads them
    assert seen.unknown == ()


def test_texts_of_which_some_are_no_chunks() -> None:
    texts = [{"text": "new"}, {"text": "12", "source": "of a"}, {"text": "newer"}]
    seen = found({"texts": texts}, {"handle": None}, row("a"), {"handle": None})
    assert seen.handles == (handle("a"),)
    assert seen.needed == {"isolated a": 2}
    assert seen.unknown == ("new", "newer")


def test_nothing_found() -> None:
    assert found({"query": "?"}) == Found((), {}, ())
