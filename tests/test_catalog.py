"""The catalog: round trips, the staleness rule, transactions, several connections."""

import sqlite3
import threading
from functools import partial

import pytest

from fusionrag_integrations.documents.chunk_record import ChunkRecord, ContextTrace, EncodedChunk
from fusionrag_integrations.documents.types import Chunk, DocumentKey
from fusionrag_integrations.errors import (
    InvalidInputError,
    StoreError,
    StoreMismatchError,
    StoreNotFoundError,
)
from fusionrag_integrations.store.catalog import Catalog
from fusionrag_integrations.store.info import CatalogCounts, StoreInfo
from tests.conftest import all_records, document_ids

INFO = StoreInfo(1, "signature", "tiny-llama", "lexical", 256, "float32")


def record(document_id, index, text, *, scope="", title="", metadata=None, key=None):
    chunk = Chunk(f"{document_id}:{text}", document_id, index, text, title, scope, metadata or {})
    ids = tuple(range(index, index + len(text)))
    offsets = tuple((i, i + 1) for i in range(len(text)))
    return ChunkRecord(EncodedChunk(chunk, ids, offsets), key or f"iso-{text}")


def put(catalog, document_id, texts, content_hash="hash", **settings):
    records = [record(document_id, i, text, **settings) for i, text in enumerate(texts)]
    key = DocumentKey(document_id, settings.get("scope", ""))
    catalog.documents.replace(key, content_hash, records)


def fuse(catalog, chunk_id, *neighbour_ids):
    assert catalog.kv.set_fused(chunk_id, f"fused-{chunk_id}", neighbour_ids)


def everything(catalog):
    """All that a catalog says, for before-and-after comparisons."""
    ids = catalog.chunks.ids()
    return (
        [(d, catalog.documents.content_hash(d)) for d in catalog.documents.all()],
        all_records(catalog),
        [catalog.kv.neighbours(i) for i in ids],
        catalog.counts(),
        catalog.kv.live_keys(),
        catalog.revision,
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "catalog ?#%.sqlite"


@pytest.fixture
def connections(monkeypatch):
    """SQLite's connections, in the order of their opening."""
    opened = []
    connect = sqlite3.connect

    def connected(*args, **settings):
        opened.append(connect(*args, **settings))
        return opened[-1]

    monkeypatch.setattr(sqlite3, "connect", connected)
    return opened


@pytest.fixture
def catalog(path, connections):
    with Catalog.create(path, INFO) as catalog:
        yield catalog


@pytest.fixture
def fused(catalog):
    """Documents a (a1, a2, a3) and b (b1, b2), x on its own; some chunks with fused KV."""
    put(catalog, "a", ["a1", "a2", "a3"])
    put(catalog, "b", ["b1", "b2"])
    put(catalog, "x", ["x1", "x2"])
    fuse(catalog, "a:a2", "a:a1")
    fuse(catalog, "b:b1", "a:a1", "x:x1")
    fuse(catalog, "b:b2", "a:a3", "b:b1")
    fuse(catalog, "x:x2", "x:x1")
    return catalog


def fused_ids(catalog):
    return [r.chunk.id for r in all_records(catalog) if r.fused_key]


def test_a_record_comes_back_as_it_was(catalog):
    metadata = {"page": 3, "score": 0.1, "draft": True, "source": 'é "quoted"'}
    wanted = record("d", 0, "Zoë's 日本 🙂", scope="s", title="Title", metadata=metadata)
    catalog.documents.replace(DocumentKey("d", "s"), "hash", [wanted])
    assert catalog.chunks.record(wanted.chunk.id) == wanted
    assert catalog.chunks.record("other") is None
    assert catalog.documents.content_hash(DocumentKey("d", "s")) == "hash"
    assert catalog.documents.content_hash(DocumentKey("d")) is None
    assert all_records(catalog)[0].chunk.text == wanted.chunk.text
    assert catalog.chunks.scoped_texts(["other", wanted.chunk.id]) == [
        (wanted.chunk.id, "s", wanted.chunk.text)
    ]


def test_large_token_ids_and_no_tokens(catalog):
    chunk = Chunk("c", "d", 0, "text")
    large = ChunkRecord(EncodedChunk(chunk, (0, 2**31 - 1), ((0, 1), (1, 70_000))), "k")
    catalog.documents.replace(DocumentKey("d"), "h", [large])
    assert catalog.chunks.record("c") == large
    none = ChunkRecord(EncodedChunk(chunk, (), ()), "k")
    catalog.documents.replace(DocumentKey("d"), "h", [none])
    assert catalog.chunks.record("c") == none


def test_reopening_keeps_everything(fused, path):
    before = everything(fused)
    fused.close()
    with Catalog.open(path) as again:
        assert everything(again) == before
        assert again.info == INFO


def test_records_come_in_the_order_asked_for_in_any_number(catalog, connections):
    texts = [f"t{i:04}" for i in range(1203)]
    put(catalog, "d", texts)
    limit = sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER
    connections[0].setlimit(limit, 999)  # as in old SQLite builds
    ids = [f"d:{text}" for text in reversed(texts)]
    found = catalog.chunks.records([*ids[:700], "unknown", *ids[700:], ids[0]])
    assert list(found) == ids
    assert [r.chunk.text for r in found.values()] == texts[::-1]
    assert catalog.chunks.records([]) == {}


def test_chunks_stand_by_document_and_index(catalog):
    put(catalog, "b", ["z", "y"])
    put(catalog, "a", ["q", "p"])
    order = ["a:q", "a:p", "b:z", "b:y"]
    assert catalog.chunks.ids() == order
    assert [r.chunk.id for r in all_records(catalog)] == order
    assert catalog.chunks.ids() == order
    assert catalog.kv.unfused_ids() == order
    assert document_ids(catalog) == ["a", "b"]
    assert catalog.chunks.ids([DocumentKey("b"), DocumentKey("none")]) == ["b:z", "b:y"]
    assert catalog.chunks.ids([]) == []


def test_predecessors_are_the_nearest_in_document_order(catalog):
    put(catalog, "other", ["o"])
    put(catalog, "d", ["e", "d", "c", "b"])

    def before(chunk_id, count):
        return [r.chunk.text for r in catalog.chunks.predecessors(chunk_id, count)]

    assert before("d:b", 2) == ["d", "c"]
    assert before("d:b", 9) == ["e", "d", "c"]
    assert before("d:d", 2) == ["e"]
    assert before("d:e", 2) == []
    assert before("d:b", 0) == []
    assert before("unknown", 2) == []


def test_fused_keys_neighbours_counts_and_live_keys(fused):
    assert fused_ids(fused) == ["a:a2", "b:b1", "b:b2", "x:x2"]
    assert fused.kv.neighbours("b:b1") == ("a:a1", "x:x1")
    assert fused.kv.neighbours("a:a1") == ()
    assert fused.chunks.record("b:b1").handle.fused_key == "fused-b:b1"
    assert fused.kv.unfused_ids() == ["a:a1", "a:a3", "x:x1"]
    assert fused.counts() == CatalogCounts(documents=3, chunks=7, fused_chunks=4, tokens=14)
    texts = ["a1", "a2", "a3", "b1", "b2", "x1", "x2"]
    assert fused.kv.live_keys() == {f"iso-{t}" for t in texts} | {
        f"fused-{i}" for i in fused_ids(fused)
    }


def test_an_empty_catalog(catalog):
    assert everything(catalog) == ([], [], [], CatalogCounts(0, 0, 0, 0), set(), 0)


def test_fusing_again_replaces_the_neighbours(fused):
    assert fused.kv.set_fused("b:b1", "new", ["x:x2"])
    assert fused.chunks.record("b:b1").fused_key == "new"
    assert fused.kv.neighbours("b:b1") == ("x:x2",)
    fused.documents.delete([DocumentKey("a")])
    assert fused.chunks.record("b:b1").fused_key == "new"


@pytest.mark.parametrize(
    ("chunk_id", "neighbours"),
    [("gone", ["a:a1"]), ("a:a2", ["gone"]), ("a:a2", ["a:a1", "gone"]), ("gone", [])],
)
def test_fusing_with_what_is_gone_writes_nothing(fused, chunk_id, neighbours):
    before = everything(fused)
    assert fused.kv.set_fused(chunk_id, "new", neighbours) is False
    assert everything(fused) == before


def test_fusing_across_scopes_writes_nothing(fused):
    put(fused, "secret", ["s"], scope="private")
    before = everything(fused)
    assert fused.kv.set_fused("a:a2", "new", ["secret:s"]) is False
    assert everything(fused) == before


def test_an_edited_neighbour_clears_the_fused_keys_made_with_it(fused):
    put(fused, "a", ["a1 edited", "a2", "a3"], "new hash")
    # a2 had a1 as neighbour and is of the document; b1 had a1; b2 had a3, which stayed.
    assert fused_ids(fused) == ["b:b2", "x:x2"]
    assert [fused.kv.neighbours(i) for i in ("a:a2", "b:b1")] == [(), ()]
    assert fused.kv.neighbours("b:b2") == ("a:a3", "b:b1")
    assert fused.chunks.record("a:a1") is None
    assert fused.documents.content_hash(DocumentKey("a")) == "new hash"


def test_the_documents_own_fused_keys_are_cleared_even_if_their_neighbours_stay(fused):
    put(fused, "x", ["x1", "x2", "x3"])
    assert fused_ids(fused) == ["a:a2", "b:b1", "b:b2"]
    assert fused.kv.neighbours("x:x2") == ()


def test_an_unchanged_chunk_keeps_its_id_and_isolated_key(fused):
    put(fused, "a", ["new", "a3", "a1"])
    kept = fused.chunks.records(["a:a3", "a:a1"])
    assert [(r.chunk.index, r.isolated_key) for r in kept.values()] == [
        (1, "iso-a3"),
        (2, "iso-a1"),
    ]
    assert fused.chunks.ids([DocumentKey("a")]) == ["a:new", "a:a3", "a:a1"]
    # Only a2 went; it was nobody's neighbour.
    assert fused_ids(fused) == ["b:b1", "b:b2", "x:x2"]


def test_what_a_kept_chunk_says_of_itself_is_updated(fused):
    put(fused, "x", ["x1", "x2"], title="New", metadata={"page": 2})
    chunk = fused.chunks.record("x:x1").chunk
    assert (chunk.title, chunk.metadata) == ("New", {"page": 2})
    assert "b:b1" in fused_ids(fused)


def test_a_neighbour_whose_key_changed_counts_as_gone(fused):
    put(fused, "x", ["x1", "x2"], key="iso-other")
    assert fused_ids(fused) == ["a:a2", "b:b2"]


def test_documents_of_two_scopes_share_nothing_but_their_id(catalog):
    """Whatever characters are in either."""
    keys = [DocumentKey("memo"), DocumentKey("memo", "board"), DocumentKey("board\x1fmemo")]
    for key in keys:
        chunk = Chunk(f"{key.scope}/{key.id}", key.id, 0, "text", scope=key.scope)
        catalog.documents.replace(key, key.scope, [ChunkRecord(EncodedChunk(chunk, (), ()), "k")])
    assert catalog.documents.all() == sorted(keys, key=lambda key: (key.scope, key.id))
    assert catalog.documents.content_hash(keys[1]) == "board"
    assert catalog.chunks.ids([keys[1]]) == ["board/memo"]
    assert catalog.documents.delete([keys[1]]) == 1
    assert set(catalog.documents.all()) == {keys[0], keys[2]}


def test_a_deleted_document_takes_the_fused_keys_made_with_it(fused):
    assert fused.documents.delete([DocumentKey("a"), DocumentKey("none"), DocumentKey("a")]) == 1
    assert fused_ids(fused) == ["x:x2"]
    assert document_ids(fused) == ["b", "x"]
    assert fused.chunks.ids() == ["b:b1", "b:b2", "x:x1", "x:x2"]
    assert fused.kv.neighbours("b:b2") == ()
    assert fused.kv.live_keys() == {"iso-b1", "iso-b2", "iso-x1", "iso-x2", "fused-x:x2"}


def test_deleting_everything_and_nothing(fused):
    before = everything(fused)
    assert fused.documents.delete([DocumentKey("none")]) == 0
    assert everything(fused) == before
    assert fused.documents.delete(fused.documents.all()) == 3
    assert everything(fused)[:5] == ([], [], [], CatalogCounts(0, 0, 0, 0), set())


def test_a_document_without_chunks_is_known(fused):
    put(fused, "x", [], "empty")
    assert fused.documents.content_hash(DocumentKey("x")) == "empty"
    assert fused.chunks.ids([DocumentKey("x")]) == []
    assert fused_ids(fused) == ["a:a2", "b:b2"]


def test_fused_keys_of_given_records_are_not_taken_over(catalog):
    base = record("d", 0, "text")
    given = ChunkRecord(base.encoded, base.isolated_key, "fused")
    catalog.documents.replace(DocumentKey("d"), "h", [given])
    assert catalog.chunks.record(base.chunk.id) == base


def test_wrong_records_are_refused(fused):
    before = everything(fused)
    with pytest.raises(InvalidInputError, match="another"):
        fused.documents.replace(DocumentKey("a"), "h", [record("b", 0, "b9")])
    with pytest.raises(InvalidInputError, match="same id"):
        fused.documents.replace(DocumentKey("a"), "h", [record("a", i, "t") for i in (0, 1)])
    with pytest.raises(InvalidInputError, match="Metadata of document 'a'"):
        put(fused, "a", ["t"], metadata={"when": object()})
    assert everything(fused) == before


def test_a_change_that_fails_in_the_middle_changes_nothing(fused):
    before = everything(fused)
    taken = Chunk("b:b1", "a", 1, "text")  # an id of document b: fails when it is inserted
    records = [record("a", 0, "new"), ChunkRecord(EncodedChunk(taken, (), ()), "k")]
    with pytest.raises(StoreError, match="UNIQUE"):
        fused.documents.replace(DocumentKey("a"), "h", records)
    assert everything(fused) == before
    with pytest.raises(InvalidInputError, match="surrogate"):
        put(fused, "a", ["new"], title="\ud800")
    assert everything(fused) == before
    fuse(fused, "a:a1", "a:a2")  # no transaction was left open


class Interrupted(sqlite3.Connection):
    """Interrupted where the revision is raised, behind all else that a change writes."""

    def execute(self, sql, *parameters):
        if sql.startswith("UPDATE store SET"):
            raise KeyboardInterrupt
        return super().execute(sql, *parameters)


def test_a_failing_deletion_changes_nothing(fused, path, monkeypatch):
    before = everything(fused)
    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Interrupted))
    with Catalog.open(path) as other:
        for change in (
            lambda: other.documents.delete([DocumentKey("a")]),
            lambda: put(other, "a", ["new"]),
        ):
            with pytest.raises(KeyboardInterrupt):
                change()
        assert everything(other) == before
    assert everything(fused) == before


def test_fusing_that_fails_in_the_middle_changes_nothing(fused, connections):
    before = everything(fused)
    connections[0].execute(
        """CREATE TEMP TRIGGER full BEFORE INSERT ON neighbours WHEN NEW.position = 1
        BEGIN SELECT RAISE(ABORT, 'disk full'); END"""
    )
    with pytest.raises(StoreError, match="disk full"):
        fused.kv.set_fused("a:a2", "new", ["a:a1", "a:a3"])
    assert everything(fused) == before


def test_two_connections_see_one_anothers_changes(catalog, path):
    with Catalog.open(path) as other:
        revisions = [other.revision]
        put(catalog, "d", ["t", "u"])
        revisions.append(other.revision)
        assert other.chunks.ids() == ["d:t", "d:u"]
        fuse(other, "d:u", "d:t")
        assert catalog.revision == revisions[-1]  # KV is no change of documents
        assert catalog.kv.neighbours("d:u") == ("d:t",)
        other.documents.delete([DocumentKey("d")])
        revisions.append(catalog.revision)
        assert catalog.chunks.ids() == []
    assert revisions == sorted(set(revisions))


def test_threads_and_connections_change_one_file(catalog, path):
    errors = []

    def work(own, name):
        try:
            for i in range(10):
                put(own, f"{name}{i}", ["t", "u"])
                fuse(own, f"{name}{i}:u", f"{name}{i}:t")
        except StoreError as error:
            errors.append(error)

    with Catalog.open(path) as other:
        threads = [
            threading.Thread(target=work, args=(own, name))
            for own, name in ((catalog, "a"), (catalog, "b"), (other, "c"), (other, "d"))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert errors == []
    assert catalog.counts() == CatalogCounts(documents=40, chunks=80, fused_chunks=40, tokens=80)
    assert catalog.revision == 40


def test_where_there_is_no_store(path):
    with pytest.raises(StoreNotFoundError, match="missing"):
        Catalog.open(path)
    assert not path.exists()


def test_a_creation_that_was_cut_off_can_be_made_good(path):
    path.touch()
    with pytest.raises(StoreNotFoundError, match="empty"):
        Catalog.open(path)
    with Catalog.create(path, INFO) as catalog:
        assert catalog.info == INFO


def test_a_store_is_never_made_over_another(catalog, path):
    put(catalog, "d", ["t"])
    with pytest.raises(StoreError, match="already"):
        Catalog.create(path, INFO)
    assert catalog.chunks.ids() == ["d:t"]


def test_other_files_are_no_catalog_and_stay_as_they_are(path):
    path.write_bytes(b"Not a database, but long enough to look at. " * 40)
    before = path.read_bytes()
    for use in (Catalog.open, lambda path: Catalog.create(path, INFO)):
        with pytest.raises(StoreError, match="not a database"):
            use(path)
    assert path.read_bytes() == before


def test_another_database_is_no_catalog_and_stays_as_it_is(path):
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE t (x)")
    db.commit()
    db.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="not the catalog"):
        Catalog.open(path)
    with pytest.raises(StoreError, match="already"):
        Catalog.create(path, INFO)
    assert path.read_bytes() == before
    with pytest.raises(StoreError, match="can't be used"):
        Catalog.open(path.parent)


def test_another_schema_version_is_refused(catalog, path):
    catalog.close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StoreMismatchError, match="version 99"):
        Catalog.open(path)


def test_a_closed_catalog_says_so(catalog):
    catalog.close()
    with pytest.raises(StoreError, match="closed"):
        catalog.chunks.ids()


def test_the_file_is_journalled_for_a_killed_process(catalog, path, connections):
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    db.close()
    assert connections[0].execute("PRAGMA synchronous").fetchall() == [(2,)]
    assert connections[0].execute("PRAGMA foreign_keys").fetchall() == [(1,)]


def traced(scale, *neighbours):
    """A trace of a chunk of two tokens, in numbers that float32 holds exactly."""
    return ContextTrace(
        sensitivity=(0.25 * scale, 2.0**-20),
        outside=(0.5, 0.125 * scale),
        inside=(0.375, 0.0),
        neighbours=tuple(f"iso-{name}" for name in neighbours),
        by_neighbour=tuple(0.0625 * (i + scale) for i in range(len(neighbours))),
        neighbour_tokens=2 * len(neighbours),
    )


@pytest.fixture
def seen(fused):
    """b1 and b2 with what fusing showed."""
    assert fused.kv.set_fused("b:b1", "f1", ["a:a1", "x:x1"], traced(1, "a1", "x1"))
    assert fused.kv.set_fused("b:b2", "f2", ["a:a3"], traced(3, "a3"))
    return fused


def test_a_trace_comes_back_as_it_was_also_when_reopened(seen, path):
    for catalog in (seen, Catalog.open(path)):
        with catalog:
            assert catalog.chunks.record("b:b1").trace == traced(1, "a1", "x1")
            assert catalog.chunks.record("b:b2").trace == traced(3, "a3")
            assert catalog.chunks.record("a:a2").trace is None  # fused, but nobody looked
            assert [r.trace for r in catalog.chunks.predecessors("b:b2", 1)] == [
                traced(1, "a1", "x1")
            ]
            assert [r.trace for r in catalog.chunks.with_text("b2")] == [traced(3, "a3")]


def test_a_trace_keeps_the_precision_of_float32(fused):
    third = ContextTrace((1 / 3, 1e-30), (0.1, 0.2), (0.7, 0.6), ("iso-a1",), (0.15,), 2)
    assert fused.kv.set_fused("b:b1", "f", ["a:a1"], third)
    kept = fused.chunks.record("b:b1").trace
    assert kept.sensitivity == pytest.approx(third.sensitivity, rel=1e-7, abs=0.0)
    assert kept.outside + kept.inside == pytest.approx(third.outside + third.inside, rel=1e-7)
    assert kept.by_neighbour == pytest.approx(third.by_neighbour, rel=1e-7)


def test_a_trace_stays_when_a_neighbour_clears_the_fused_key(seen):
    put(seen, "a", ["a1 edited", "a2", "a3"], "new hash")
    record = seen.chunks.record("b:b1")
    assert (record.fused_key, record.trace) == ("", traced(1, "a1", "x1"))
    seen.documents.delete([DocumentKey("a"), DocumentKey("x")])
    seen.kv.delete_old_traces()
    record = seen.chunks.record("b:b2")
    assert (record.fused_key, record.trace) == ("", traced(3, "a3"))


def test_a_trace_stays_where_its_document_changes_around_it(seen):
    put(seen, "b", ["new", "b2", "b1"])
    seen.kv.delete_old_traces()
    assert seen.chunks.record("b:b1").trace == traced(1, "a1", "x1")
    assert seen.chunks.record("b:b2").trace == traced(3, "a3")
    assert seen.chunks.record("b:new").trace is None


def test_a_trace_goes_with_its_text(seen):
    put(seen, "b", ["b2"])
    seen.kv.delete_old_traces()
    assert seen.kv.traced_keys() == {"f2"}
    put(seen, "b", ["b1", "b2"])
    assert seen.chunks.record("b:b1").trace is None
    assert seen.chunks.record("b:b2").trace == traced(3, "a3")
    seen.documents.delete([DocumentKey("b")])
    seen.kv.delete_old_traces()
    assert seen.kv.traced_keys() == set()


def test_kv_that_was_looked_at_before_has_its_trace_again(seen):
    assert seen.kv.set_fused("b:b1", "again", ["x:x2"], traced(5, "x2"))
    assert seen.kv.set_fused("b:b1", "f1", ["a:a1", "x:x1"])
    record = seen.chunks.record("b:b1")
    assert (record.fused_key, record.trace) == ("f1", traced(1, "a1", "x1"))


def test_fusing_again_replaces_the_trace(seen):
    assert seen.kv.set_fused("b:b1", "again", ["x:x2"], traced(5, "x2"))
    assert seen.chunks.record("b:b1").trace == traced(5, "x2")
    assert seen.chunks.record("b:b2").trace == traced(3, "a3")


@pytest.mark.parametrize(("chunk_id", "neighbours"), [("b:b1", ["gone"]), ("gone", ["a:a1"])])
def test_fusing_with_what_is_gone_leaves_the_trace(seen, chunk_id, neighbours):
    before = everything(seen)
    assert seen.kv.set_fused(chunk_id, "new", neighbours, traced(5, *neighbours)) is False
    assert everything(seen) == before


def test_fusing_that_fails_behind_the_trace_leaves_it(seen, connections):
    before = everything(seen)
    connections[0].execute(
        """CREATE TEMP TRIGGER full BEFORE INSERT ON neighbours
        BEGIN SELECT RAISE(ABORT, 'disk full'); END"""
    )
    with pytest.raises(StoreError, match="disk full"):
        seen.kv.set_fused("b:b1", "new", ["a:a1"], traced(5, "a1"))
    assert everything(seen) == before


def test_a_trace_is_no_change_of_documents(seen):
    before = seen.revision
    assert seen.kv.set_fused("b:b1", "again", ["x:x2"], traced(5, "x2"))
    seen.kv.delete_old_traces()
    assert seen.revision == before
