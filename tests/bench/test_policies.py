"""What KV is fused behind, policy by policy: by hand, and as ingest makes it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.bench.neighbours import WRONG, make_policy
from fusionrag_integrations.documents.chunk_record import ChunkRecord, EncodedChunk
from fusionrag_integrations.documents.types import Chunk
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.ingest.neighbours import Candidates, NeighbourPolicy
from tests.conftest import all_records, town

KINDS = ("default", "reversed", "similar", "predecessors", "missing", "wrong")
ROOM = 4_096


def record(name: str, tokens: int = 10) -> ChunkRecord:
    """Chunk `a3` is number 3 of document `a`."""
    chunk = Chunk(name, name[0], int(name[1:]), f"text of {name}")
    ids = tuple(range(tokens))
    return ChunkRecord(EncodedChunk(chunk, ids, tuple((i, i + 1) for i in ids)), f"iso-{name}")


def records(names: str) -> list[ChunkRecord]:
    return [record(name) for name in names.split()]


CORPUS = records("a0 a1 a2 a3 b0 b1 b2 c0 c1 d0")


def engine_of(corpus: Sequence[ChunkRecord]) -> Any:
    """As much of an engine as policies look at."""
    by_id = {r.chunk.id: r for r in corpus}
    chunks = SimpleNamespace(
        ids=lambda: list(by_id), records=lambda ids: {i: by_id[i] for i in ids}
    )
    return SimpleNamespace(store=SimpleNamespace(catalog=SimpleNamespace(chunks=chunks)))


def policy(name: str, corpus: Sequence[ChunkRecord] = CORPUS) -> NeighbourPolicy:
    return make_policy(name)(engine_of(corpus))


def chosen(name: str, similar: str, of: str = "a3", room: int = ROOM) -> str:
    """What a policy chooses for chunk `of` of its candidates: as many as it asks for."""
    asked = policy(name)
    document, number = of[0], int(of[1:])
    before = [record(f"{document}{i}") for i in range(number)][-asked.predecessors or number :]
    near = records(similar)[: asked.similar]
    return " ".join(r.chunk.id for r in asked.choose(Candidates(record(of), before, near, room)))


class TestByHand:
    def test_default(self) -> None:
        assert chosen("default", "b0 a2 c0 a0") == "c0 b0 a1 a2"
        assert chosen("default:5", "b0 a2 c0 a0") == "a0 c0 b0 a1 a2"
        assert chosen("default:3", "b0 a2 c0 a0") == "b0 a1 a2"
        assert chosen("default:1", "b0 a2 c0 a0") == "a2"

    @pytest.mark.parametrize("number", ["", ":0", ":1", ":2", ":3", ":4"])
    @pytest.mark.parametrize("room", [ROOM, 25, 5])
    def test_reversed_is_the_default_the_other_way(self, number: str, room: int) -> None:
        usual, turned = (
            chosen(f"{name}{number}", "b0 a2 c0 a0", room=room).split()
            for name in ("default", "reversed")
        )
        assert turned == usual[::-1]
        asked = [policy(f"{name}{number}") for name in ("default", "reversed")]
        assert len({(p.similar, p.predecessors) for p in asked}) == 1

    def test_similar(self) -> None:
        assert chosen("similar", "b0 a2 c0 a0") == "a0 c0 a2 b0"
        assert chosen("similar:2", "b0 a2 c0 a0") == "a2 b0"
        assert chosen("similar:0", "b0 a2 c0 a0") == ""
        assert policy("similar:0").similar == policy("similar").predecessors == 0

    def test_predecessors(self) -> None:
        assert chosen("predecessors", "b0 a2 c0 a0") == "a0 a1 a2"
        assert chosen("predecessors:2", "b0 a2 c0 a0") == "a1 a2"
        assert chosen("predecessors", "b0 c0", of="a0") == ""
        assert policy("predecessors:2").similar == 0

    def test_missing(self) -> None:
        assert chosen("missing", "a2 b0 a0 c0 a1 d0") == "d0 c0 b0"
        assert chosen("missing:2", "a2 b0 a0 c0 a1 d0") == "c0 b0"
        assert chosen("missing:1", "a2 a0 b0") == ""  # of the two it looks up none is another's
        assert policy("missing").predecessors == 0

    @pytest.mark.parametrize(("number", "count"), [("", WRONG), (":2", 2), (":0", 0), (":99", 6)])
    def test_wrong(self, number: str, count: int) -> None:
        found = chosen(f"wrong{number}", "").split()
        assert len(found) == len(set(found)) == count
        assert not [name for name in found if name.startswith("a")]

    def test_wrong_is_the_same_each_time_and_another_for_each_chunk(self) -> None:
        draws = [chosen("wrong", "", of=of) for of in ("a0", "a1", "a2", "a3")]
        assert draws == [chosen("wrong", "", of=of) for of in ("a0", "a1", "a2", "a3")]
        assert len(set(draws)) > 1
        drawn = {name for draw in draws for name in draw.split()}
        assert drawn >= {"b0", "c0", "d0"}

    def test_wrong_takes_all_there_are_if_they_are_few(self) -> None:
        alone = policy("wrong", records("a0 a1"))
        assert alone.choose(Candidates(record("a1"), [], [], ROOM)) == []
        two = policy("wrong", records("a0 b0"))
        assert [r.chunk.id for r in two.choose(Candidates(record("a0"), [], [], ROOM))] == ["b0"]

    @pytest.mark.parametrize("kind", KINDS)
    def test_room_is_kept(self, kind: str) -> None:
        assert len(chosen(kind, "b0 c0 d0 b1", room=25).split()) == 2
        assert chosen(kind, "b0 c0 d0 b1", room=9) == ""


@pytest.mark.parametrize("name", ["nearest", "", ":3", "similar:x", "similar:-1", "wrong:1.5"])
def test_an_unknown_name_lists_the_known(name: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        make_policy(name)
    assert repr(name) in str(refused.value)
    assert all(kind in str(refused.value) for kind in KINDS)


DOCUMENTS = [town(number) for number in range(4)]


@pytest.fixture(scope="module")
def model(model_dir: Path) -> CausalModel:
    return CausalModel.load(model_dir)


@pytest.fixture
def fused(model: CausalModel, tmp_path: Path) -> Any:
    """Neighbours of every chunk, by chunk id, as an ingest under a policy chose them."""

    def ingest(name: str | None, store: str = "store") -> dict[str, tuple[str, ...]]:
        engine = FusionEngine.open(model, tmp_path / store, chunk_tokens=48)
        if name is None:
            engine.ingest(DOCUMENTS)
        else:
            engine.ingest(DOCUMENTS, neighbours=make_policy(name)(engine))
        ingest.engine = engine  # type: ignore[attr-defined]
        return {
            r.chunk.id: engine.store.catalog.kv.neighbours(r.chunk.id)
            for r in all_records(engine.store.catalog)
        }

    return ingest


def by_id(engine: FusionEngine) -> dict[str, ChunkRecord]:
    return {r.chunk.id: r for r in all_records(engine.store.catalog)}


def cosines(engine: FusionEngine) -> dict[tuple[str, str], float]:
    vectors = engine.store.embeddings(list(by_id(engine)))
    norms = {i: math.sqrt(sum(x * x for x in v)) for i, v in vectors.items()}
    return {
        (a, b): sum(x * y for x, y in zip(vectors[a], vectors[b], strict=True))
        / norms[a]
        / norms[b]
        for a, b in product(vectors, vectors)
    }


class TestIngested:
    """Four documents of three chunks each."""

    def test_predecessors(self, fused: Any) -> None:
        found = fused("predecessors:2")
        known = by_id(fused.engine)
        at = {(r.chunk.document_id, r.chunk.index): i for i, r in known.items()}
        assert len(found) == 12
        for chunk_id, neighbours in found.items():
            chunk = known[chunk_id].chunk
            before = range(max(0, chunk.index - 2), chunk.index)
            assert list(neighbours) == [at[chunk.document_id, i] for i in before]
            assert bool(known[chunk_id].fused_key) == (chunk.index > 0)

    def test_similar(self, fused: Any) -> None:
        found = fused("similar:3")
        near = cosines(fused.engine)
        for chunk_id, neighbours in found.items():
            nearest = sorted(near[chunk_id, o] for o in found if o != chunk_id)[-3:]
            assert [near[chunk_id, n] for n in neighbours] == pytest.approx(nearest, abs=1e-5)

    def test_missing(self, fused: Any) -> None:
        found = fused("missing:3")
        near, known = cosines(fused.engine), by_id(fused.engine)
        for chunk_id, neighbours in found.items():
            document = known[chunk_id].chunk.document_id
            others = [o for o in found if known[o].chunk.document_id != document]
            # Two of the same document at most are passed over: six are looked up.
            nearest = sorted(near[chunk_id, o] for o in others)[-3:]
            assert set(neighbours) <= set(others)
            assert [near[chunk_id, n] for n in neighbours] == pytest.approx(nearest, abs=1e-5)

    def test_wrong(self, fused: Any) -> None:
        found = fused("wrong")
        known = by_id(fused.engine)
        for chunk_id, neighbours in found.items():
            assert len(set(neighbours)) == WRONG
            documents = {known[n].chunk.document_id for n in neighbours}
            assert known[chunk_id].chunk.document_id not in documents
        assert fused("wrong", "another store") == found

    def test_reversed_and_default(self, fused: Any) -> None:
        usual = fused(None)
        assert fused("default", "named") == usual
        turned = fused("reversed", "turned")
        assert turned == {chunk_id: found[::-1] for chunk_id, found in usual.items()}
        assert all(len(found) == 4 for found in turned.values())

    def test_none_at_all(self, fused: Any) -> None:
        assert set(fused("similar:0").values()) == {()}
        assert {r.fused_key for r in by_id(fused.engine).values()} == {""}
