"""Damage to any part of a store is found, and mended without touching what is intact."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from fusionrag_integrations import AnswerSettings, Corpus, FusionEngine
from fusionrag_integrations.catalog import CATALOG_FILE, Catalog
from fusionrag_integrations.corpus import LOCK_FILE
from fusionrag_integrations.errors import StoreError, StoreNotFoundError
from fusionrag_integrations.repair import Problem, find_damage, repair
from tests.conftest import town


@pytest.fixture(scope="module")
def made(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of three towns, one in a scope; nobody changes it."""
    path = tmp_path_factory.mktemp("made") / "store"
    engine = FusionEngine.from_pretrained(model_dir, store=path, chunk_tokens=48)
    engine.ingest([town(0), town(1), town(2)])
    engine.corpus.close()
    return path


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "store")


def rows(store: Path) -> dict[str, list[tuple[object, ...]]]:
    """All that a catalog says."""
    with sqlite3.connect(store / CATALOG_FILE) as db:
        tables = ("documents", "chunks", "neighbours", "traces")
        found = {table: sorted(db.execute(f"SELECT * FROM {table}")) for table in tables}
    with Catalog.open(store / CATALOG_FILE) as catalog:
        return found | {"info": [(catalog.info,)]}


def files(store: Path, pattern: str) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in store.glob(pattern) if path.is_file()}


def areas(problems: list[Problem]) -> list[tuple[str, bool]]:
    return [(problem.area, problem.mended) for problem in problems]


def flip(path: Path, where: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[where] ^= 1
    path.write_bytes(content)


def test_an_intact_store_has_no_problems_and_repair_leaves_it(store: Path) -> None:
    before = files(store, "kv/**/*") | files(store, "documents/**/*"), rows(store)
    assert list(find_damage(store)) == list(repair(store)) == []
    assert (files(store, "kv/**/*") | files(store, "documents/**/*"), rows(store)) == before


def destroyed(path: Path) -> None:
    path.write_bytes(b"no database" * 99)


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def scribbled(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[8192:9000] = os.urandom(808)
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [destroyed, torn, scribbled, Path.unlink])
def test_the_catalog_is_rebuilt_as_it_was(store: Path, damage: Callable[[Path], None]) -> None:
    before = rows(store)
    damage(store / CATALOG_FILE)
    (problem,) = find_damage(store)
    assert problem.area == "catalog"
    assert areas(list(repair(store))) == [("catalog", True)]
    assert rows(store) == before
    assert list(find_damage(store)) == []
    assert (store / f"{CATALOG_FILE}.damaged").exists() == (damage is not Path.unlink)


def test_the_rebuilt_store_answers_from_fused_kv(store: Path, model_dir: Path) -> None:
    destroyed(store / CATALOG_FILE)
    list(repair(store))
    engine = FusionEngine.from_pretrained(model_dir, store=store)
    report = engine.ingest([town(0), town(1), town(2)])
    assert (report.documents_unchanged, report.isolated_computed, report.fused_computed) == (
        3,
        0,
        0,
    )
    texts = [hit.chunk.text for hit in engine.corpus.search("town", 3)]
    as_stored = AnswerSettings(corrected=False)
    assert engine.answer("\n\n".join(texts) + "\n\nWhich?", as_stored).fused_chunks == 3


def test_an_old_journal_is_not_played_into_the_new_catalog(store: Path) -> None:
    before = rows(store)
    destroyed(store / CATALOG_FILE)
    (store / f"{CATALOG_FILE}-journal").write_bytes(
        b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + bytes(504)
    )
    list(repair(store))
    assert rows(store) == before


def test_a_link_whose_neighbour_changed_is_not_restored(store: Path, model_dir: Path) -> None:
    """Manifests of other documents still name the old neighbours: what they say isn't true now."""
    engine = FusionEngine.from_pretrained(model_dir, store=store)
    with pytest.raises(KeyboardInterrupt):
        engine.ingest([town(7)], delete_others=True, progress=stop)
    engine.corpus.close()
    before = rows(store)
    destroyed(store / CATALOG_FILE)
    list(repair(store))
    assert rows(store)["neighbours"] == before["neighbours"] == []


def stop(stage: str, done: int, total: int) -> None:
    if stage == "isolated":
        raise KeyboardInterrupt


@pytest.mark.parametrize("damage", [flip, torn, Path.unlink])
def test_a_manifest_is_written_anew_from_the_catalog(
    store: Path, damage: Callable[[Path], None]
) -> None:
    before = files(store, "documents/**/*")
    damage(sorted(before)[1])
    assert len(list(find_damage(store))) == 1
    assert areas(list(repair(store))) == [("documents", True)]
    assert files(store, "documents/**/*") == before


def test_documents_that_an_older_catalog_does_not_know_are_taken_up(
    store: Path, model_dir: Path
) -> None:
    """It was put back from a backup, say: the files are the younger."""
    before = (store / CATALOG_FILE).read_bytes()
    engine = FusionEngine.from_pretrained(model_dir, store=store)
    engine.ingest([town(3), town(4)])
    engine.corpus.close()
    newest, manifests = rows(store), files(store, "documents/**/*")
    (store / CATALOG_FILE).write_bytes(before)
    assert [problem.area for problem in find_damage(store)] == ["documents"] * 2
    assert areas(list(repair(store))) == [("documents", True)] * 2
    assert rows(store)["documents"] == newest["documents"]
    assert [row[:11] for row in rows(store)["chunks"]] == [row[:11] for row in newest["chunks"]]
    assert files(store, "documents/**/*") == manifests
    assert list(find_damage(store)) == []


def test_a_damaged_manifest_that_the_catalog_does_not_know_is_put_aside(store: Path) -> None:
    path = sorted(files(store, "documents/**/*"))[0]
    flip(path)
    damaged = path.read_bytes()
    with Catalog.open(store / CATALOG_FILE) as catalog:
        catalog.delete_documents(catalog.document_ids())
    assert areas(list(repair(store)))[:3] == [("documents", True)] * 3
    assert not path.exists()
    assert path.with_name(f"{path.name}.damaged").read_bytes() == damaged


def emptied(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [Path.unlink, emptied])
@pytest.mark.parametrize("file", [None, "store.json"], ids=["", "and store.json"])
def test_a_store_without_its_catalog_is_no_empty_place(
    store: Path, model_dir: Path, damage: Callable[[Path], None], file: str | None
) -> None:
    """Nothing is changed, by whoever opens it, and `repair` restores all of it."""
    before = rows(store)
    damage(store / CATALOG_FILE)
    said = (store / "store.json").read_bytes()
    if file:
        (store / file).unlink()
    left = files(store, "**/*")
    for salt in ("", "another"):
        with pytest.raises(StoreError, match="`fusionrag repair` makes it anew"):
            FusionEngine.from_pretrained(model_dir, store=store, salt=salt)
    with pytest.raises(StoreError, match="has lost its catalog"):
        Corpus.open(store)
    assert files(store, "**/*") == left
    (store / "store.json").write_bytes(said)
    assert areas(list(repair(store))) == [("catalog", True)]
    assert rows(store) == before


@pytest.mark.parametrize("directory", ["documents", "kv", "index"])
def test_any_part_of_a_store_is_enough(
    store: Path, model_dir: Path, tmp_path: Path, directory: str
) -> None:
    shutil.copytree(store / directory, tmp_path / "left" / directory)
    with pytest.raises(StoreError, match=rf"is missing or empty beside {directory}\."):
        FusionEngine.from_pretrained(model_dir, store=tmp_path / "left")


def test_what_a_making_that_was_stopped_leaves_is_an_empty_place(
    store: Path, model_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "left" / "documents" / "tmp").mkdir(parents=True)
    shutil.copy(store / "store.json", tmp_path / "left")
    engine = FusionEngine.from_pretrained(model_dir, store=tmp_path / "left", salt="another")
    assert engine.corpus.catalog.counts().documents == 0


def test_what_the_store_was_made_with_is_written_anew(store: Path) -> None:
    before = (store / "store.json").read_bytes()
    flip(store / "store.json")
    assert areas(list(repair(store))) == [("documents", True)]
    assert (store / "store.json").read_bytes() == before


def test_without_catalog_and_store_file_nothing_is_guessed(store: Path) -> None:
    destroyed(store / CATALOG_FILE)
    flip(store / "store.json")
    with pytest.raises(StoreError, match=r"store\.json"):
        list(repair(store))
    assert (store / CATALOG_FILE).read_bytes().startswith(b"no database")


def test_damaged_records_go_and_no_others(store: Path, model_dir: Path) -> None:
    before = files(store, "kv/??/*")
    flipped, cut, copied, other = sorted(before)[:4]
    flip(flipped)
    torn(cut)
    shutil.copy(other, copied)
    stranger = store / "kv" / "README"
    stranger.write_text("mine")
    problems = list(repair(store))
    assert {p.path for p in problems if p.mended} == {flipped, cut, copied}
    assert {p.path for p in problems if not p.mended} == {stranger}
    gone = {flipped, cut, copied}
    assert files(store, "kv/??/*") == {p: c for p, c in before.items() if p not in gone}
    stranger.unlink()
    FusionEngine.from_pretrained(model_dir, store=store).ingest([])
    assert files(store, "kv/??/*").keys() == before.keys()
    assert list(find_damage(store)) == []


def test_what_a_dead_writer_left_goes(store: Path) -> None:
    (store / "kv" / "tmp").mkdir(exist_ok=True)
    draft = store / "kv" / "tmp" / "abcd.draft"
    draft.write_bytes(b"half")
    assert list(repair(store)) == []
    assert not draft.exists()


def test_a_broken_index_is_put_aside_and_made_anew(store: Path, model_dir: Path) -> None:
    for path in (store / "index").glob("*.sqlite3"):
        path.write_bytes(b"x" * 5000)
    assert areas(list(find_damage(store))) == [("index", False)]
    assert areas(list(repair(store))) == [("index", True)]
    engine = FusionEngine.from_pretrained(model_dir, store=store)
    engine.ingest([])
    assert len(engine.corpus.search("town", 20)) == 9
    assert list(find_damage(store)) == []


def test_not_while_the_store_is_changed(store: Path) -> None:
    with FileLock(store / LOCK_FILE), pytest.raises(StoreError, match="being changed"):
        list(repair(store))


def test_no_store_is_named(tmp_path: Path) -> None:
    for work in (find_damage, repair):
        with pytest.raises(StoreNotFoundError, match="nothing"):
            list(work(tmp_path / "nothing"))
    assert not (tmp_path / "nothing").exists()


def test_a_manifest_says_what_the_catalog_says(store: Path) -> None:
    corpus = Corpus.open(store)
    for path in corpus.manifests.paths():
        manifest = corpus.manifests.read(path)
        records = corpus.catalog.records(corpus.catalog.chunk_ids([manifest.document_id]))
        assert list(manifest.records) == list(records.values())
        assert list(manifest.neighbours) == list(map(corpus.catalog.neighbours, records))
        assert json.loads(path.read_bytes().split(b"\n", 1)[1])["id"] == manifest.document_id
    corpus.close()


def test_every_file_is_its_owners_alone(model_dir: Path, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        path = tmp_path / "store"
        path.mkdir()  # by somebody who let others in
        FusionEngine.from_pretrained(model_dir, store=path, chunk_tokens=48).ingest([town(0)])
    finally:
        os.umask(before)
    private = [p for p in path.rglob("*") if "index" not in p.relative_to(path).parts[:-1]]
    open_to_others = {p.name for p in private if p.stat().st_mode & 0o077}
    assert open_to_others <= {"writing.lock"}  # which is empty
