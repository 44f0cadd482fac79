"""Damage to any part of a store is found, and fixed without touching what is intact."""

from __future__ import annotations

import json
import math
import os
import random
import re
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
from filelock import FileLock

from fusionrag_integrations import AnswerSettings, FusionEngine, Store
from fusionrag_integrations.documents.keys import isolated_key
from fusionrag_integrations.documents.types import Chunk, DocumentKey
from fusionrag_integrations.errors import InvalidInputError, StoreError, StoreNotFoundError
from fusionrag_integrations.prompt import question_prompt
from fusionrag_integrations.store.catalog import Catalog
from fusionrag_integrations.store.info import StoreInfo
from fusionrag_integrations.store.layout import CATALOG_FILE, LOCK_FILE
from fusionrag_integrations.store.manifests import Manifests
from fusionrag_integrations.store.repair import repair
from fusionrag_integrations.store.vector_index.chroma import ChromaIndex
from fusionrag_integrations.store.verify import Problem, find_damage
from tests.conftest import all_records, document_ids, town
from tests.damage import kept, said


@pytest.fixture(scope="module")
def made(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of three towns, one in a scope; nobody changes it."""
    path = tmp_path_factory.mktemp("made") / "store"
    engine = FusionEngine.from_pretrained(model_dir, store=path, chunk_tokens=48)
    engine.ingest([town(0), town(1), town(2)])
    engine.store.close()
    return path


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "store")


def rows(store: Path) -> dict[str, list[tuple[object, ...]]]:
    """All that a catalog says."""
    with sqlite3.connect(store / CATALOG_FILE) as db:
        tables = ("documents", "chunks", "neighbours", "traces", "vectors")
        found = {table: sorted(db.execute(f"SELECT * FROM {table}")) for table in tables}
    with Catalog.open(store / CATALOG_FILE) as catalog:
        return found | {"info": [(catalog.info,)]}


def files(store: Path, pattern: str) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in store.glob(pattern) if path.is_file()}


def areas(problems: list[Problem]) -> list[tuple[str, bool]]:
    return [(problem.area, problem.fixed) for problem in problems]


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
    texts = [hit.chunk.text for hit in engine.store.search("town", 3)]
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
    engine.store.close()
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


def test_a_catalog_that_is_older_than_the_documents_is_not_believed(
    store: Path, model_dir: Path
) -> None:
    """It was put back from a backup, say. Nothing is deleted on its word; `repair` renews it."""
    before = (store / CATALOG_FILE).read_bytes()
    engine = FusionEngine.from_pretrained(model_dir, store=store)
    engine.ingest([town(3), town(4)])
    engine.delete(["town-0"])
    engine.store.close()
    newest, left = rows(store), files(store, "documents/??/*") | files(store, "kv/**/*")
    (store / CATALOG_FILE).write_bytes(before)
    for opened in (Store.open, lambda path: FusionEngine.from_pretrained(model_dir, store=path)):
        with pytest.raises(StoreError, match="has a catalog that is older"):
            opened(store)
    assert [problem.area for problem in find_damage(store)] == ["catalog"]
    assert areas(list(repair(store))) == [("catalog", True)]
    assert rows(store)["documents"] == newest["documents"]
    to_fused_key = slice(0, 15)  # what is left of fused KV that went doesn't count
    assert [r[to_fused_key] for r in rows(store)["chunks"]] == [
        r[to_fused_key] for r in newest["chunks"]
    ]
    assert files(store, "documents/??/*") | files(store, "kv/**/*") == left
    assert list(find_damage(store)) == []


def test_kv_of_documents_that_the_catalog_does_not_know_is_kept(
    store: Path, model_dir: Path
) -> None:
    """Whatever became of it: one with other documents in it is as new as the files."""
    engine = FusionEngine.from_pretrained(model_dir, store=store)
    known = engine.store.catalog.documents.all()
    kept = keys_of_document(engine.store, "town-1") | keys_of_document(engine.store, "town-2")
    with Catalog.open(store / CATALOG_FILE) as catalog:
        catalog.documents.delete(known[1:])
    engine.ingest([town(9)])
    engine.delete(["town-9"])
    engine.store.close()
    assert kept <= {path.stem for path in files(store, "kv/??/*")}
    list(repair(store))
    with Catalog.open(store / CATALOG_FILE) as catalog:
        assert catalog.documents.all() == known
    assert list(find_damage(store)) == []


@pytest.mark.parametrize("then", ["ingest", "delete"])
@pytest.mark.parametrize("at", ["begin_delete", "delete", "finish_deletes", "index"])
def test_a_delete_that_was_killed_is_finished_by_the_next_change(
    store: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch, at: str, then: str
) -> None:
    """Nothing needs to be fixed. Before it began, nothing is deleted."""
    engine = FusionEngine.from_pretrained(model_dir, store=store)
    corpus = engine.store
    secret = keys_of_document(corpus, "town-1")
    if at == "index":
        monkeypatch.setattr(corpus.index, "remove", killed)
    else:
        owner = corpus.catalog.documents if at == "delete" else corpus.manifests
        monkeypatch.setattr(owner, at, killed)
    with pytest.raises(KeyboardInterrupt):
        engine.delete(["town-1"])
    monkeypatch.undo()
    corpus.close()
    assert [p for p in find_damage(store) if p.area != "index"] == []
    engine = FusionEngine.from_pretrained(model_dir, store=store)
    if then == "ingest":
        engine.ingest([town(5)])
    else:
        engine.delete(["town-0"])
    gone = at != "begin_delete"
    assert (DocumentKey("town-1") not in engine.store.catalog.documents.all()) == gone
    left = {path.stem for path in files(store, "kv/??/*")}
    assert secret.isdisjoint(left) == gone
    assert not list((store / "documents" / "deleted").glob("*"))
    assert list(find_damage(store)) == []
    engine.store.close()


def killed(*args: object) -> None:
    raise KeyboardInterrupt


def keys_of_document(corpus: Store, document_id: str) -> set[str]:
    ids = corpus.catalog.chunks.ids([DocumentKey(document_id)])
    records = corpus.catalog.chunks.records(ids).values()
    return {key for record in records for key in (record.isolated_key, record.fused_key)}


def test_whatever_bit_of_the_catalog_flips_is_found(store: Path, tmp_path: Path) -> None:
    """What is read is what was written or a named error, and `verify` names it."""
    flips_of_the_catalog(store, tmp_path / "flipped", flips=60)


def flips_of_the_catalog(store: Path, copy: Path, flips: int) -> dict[str, int]:
    """How many flips were found by `verify`, and how many left all as it was."""
    with Catalog.open(store / CATALOG_FILE) as catalog:
        before = said(catalog)
    content = (store / CATALOG_FILE).read_bytes()
    shutil.copytree(store, copy)
    draw = random.Random(0)
    counts = {"found": 0, "without effect": 0}
    for _ in range(flips):
        at, bit = draw.randrange(len(content)), 1 << draw.randrange(8)
        flipped = bytes([content[at] ^ bit])
        (copy / CATALOG_FILE).write_bytes(content[:at] + flipped + content[at + 1 :])
        try:
            with Catalog.open(copy / CATALOG_FILE) as catalog:
                same = said(catalog) == before
        except StoreError:
            same = False
        found = [problem for problem in find_damage(copy) if problem.area != "index"]
        assert found or same, f"bit {bit} of byte {at}"
        counts["found" if found else "without effect"] += 1
    return counts


def flip_in(store: Path, column: str, document_id: str) -> None:
    """Flip a bit in a column of the document's chunks."""
    with sqlite3.connect(store / CATALOG_FILE) as db:
        query = f"SELECT rowid, {column} FROM chunks WHERE document_id = ?"
        for row, value in db.execute(query, (document_id,)).fetchall():
            changed = bytes([value[0] ^ 1, *value[1:]]) if isinstance(value, bytes) else f"x{value}"
            db.execute(f"UPDATE chunks SET {column} = ? WHERE rowid = ?", (changed, row))


@pytest.mark.parametrize(
    "column", ["token_ids", "offsets", "isolated_key", "text", "title", "metadata", "scope"]
)
def test_damaged_rows_are_taken_from_the_manifest(store: Path, column: str) -> None:
    before = rows(store)
    flip_in(store, column, "town-1")
    problems = list(find_damage(store))
    assert {problem.area for problem in problems} >= {"catalog"}
    assert all(problem.fixed for problem in repair(store))
    after = rows(store)
    assert {name: after[name] for name in ("documents", "info", "traces")} == {
        name: before[name] for name in ("documents", "info", "traces")
    }
    with Catalog.open(store / CATALOG_FILE) as catalog:
        assert len(catalog.chunks.records(catalog.chunks.all_ids())) == catalog.counts().chunks
    assert list(find_damage(store)) == []


def test_damaged_rows_without_a_manifest_are_named_until_the_document_comes_again(
    store: Path, model_dir: Path
) -> None:
    flip_in(store, "token_ids", "town-1")
    with Catalog.open(store / CATALOG_FILE) as catalog:
        chunk_ids = catalog.chunks.ids([DocumentKey("town-1")])
    corpus = Store.open(store)
    corpus.manifests.path_of(DocumentKey("town-1")).unlink()
    corpus.close()
    left = [problem for problem in repair(store) if not problem.fixed]
    assert [problem.error for problem in left] == ["CatalogRowError"] * len(chunk_ids)
    assert "ingest the document again or delete it" in left[0].message
    engine = FusionEngine.from_pretrained(model_dir, store=store)
    assert engine.ingest([town(1)]).documents_changed == 1
    assert list(find_damage(store)) == []


def test_tokens_that_are_damaged_are_made_anew_from_the_text(
    store: Path, model_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The prompt is computed from its own tokens; that the KV is another is counted."""
    engine = FusionEngine.from_pretrained(model_dir, store=store)
    texts = [hit.chunk.text for hit in engine.store.search("town number 1", 3)]
    prompt = question_prompt(texts, "Which?")
    settings = AnswerSettings(corrected=False, max_tokens=4)
    before, full = (engine.answer(prompt, replace(settings, kv=kv)) for kv in ("fused", "none"))
    assert before.fused_chunks == 3
    engine.store.close()
    flip_in(store, "token_ids", "town-1")
    engine = FusionEngine.from_pretrained(model_dir, store=store)
    after = engine.answer(prompt, settings)
    assert after.usage.prompt_tokens == before.usage.prompt_tokens
    assert after.fused_chunks + len(after.fallbacks) == 3
    assert len(after.fallbacks) == sum("number 1" in text for text in texts) > 0
    assert "The tokens of chunk" in caplog.text
    assert engine.answer(prompt, replace(settings, kv="none")).token_ids == full.token_ids
    whole = replace(settings, selector="all", ratio=1.0)
    assert engine.answer(prompt, whole).token_ids == full.token_ids


def test_documents_of_another_models_store_are_put_aside(
    store: Path, made_otherwise: Path, model_dir: Path
) -> None:
    """Their token ids would be computed as this model's."""
    before = rows(store)
    for name in ("town-1", "town-5"):  # of the first there is one here, too
        path = Manifests(made_otherwise).path_of(DocumentKey(name))
        target = store / path.relative_to(made_otherwise)
        target.parent.mkdir(exist_ok=True)
        shutil.copy(path, target)
    assert areas(list(find_damage(store))) == [("documents", False)] * 2
    assert areas(list(repair(store))) == [("documents", True)] * 2
    assert rows(store) == before
    assert list(find_damage(store)) == []


def test_nor_are_they_taken_for_a_lost_catalog(store: Path, made_otherwise: Path) -> None:
    path = Manifests(made_otherwise).path_of(DocumentKey("town-5"))
    target = store / path.relative_to(made_otherwise)
    target.parent.mkdir(exist_ok=True)
    shutil.copy(path, target)
    (store / CATALOG_FILE).unlink()
    assert areas(list(repair(store))) == [("catalog", True), ("documents", True)]
    with Catalog.open(store / CATALOG_FILE) as catalog:
        assert document_ids(catalog) == ["town-0", "town-1", "town-2"]


@pytest.fixture(scope="module")
def made_otherwise(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of a store whose model has other token ids."""
    path = tmp_path_factory.mktemp("otherwise") / "store"
    shutil.copytree(made, path)
    manifests = Manifests(path)
    said = manifests.read(manifests.path_of(DocumentKey("town-1")))
    for name in ("town-1", "town-5"):
        records = []
        for record in said.records:
            chunk = replace(record.chunk, document_id=name, id=record.chunk.id[:-6] + name)
            ids = tuple(token + 1 for token in record.encoded.token_ids)
            encoded = replace(record.encoded, chunk=chunk, token_ids=ids)
            key = isolated_key(ids, "another", "")
            records.append(replace(record, encoded=encoded, isolated_key=key, fused_key=""))
        document = DocumentKey(name)
        manifests.write(replace(said, document=document, records=tuple(records), vectors={}))
    return path


def test_an_older_manifest_is_no_way_back_to_a_text_that_is_gone(
    store: Path, model_dir: Path
) -> None:
    """As where only the documents' directory is put back from a copy."""
    path = Manifests(store).path_of(DocumentKey("town-1"))
    old = path.read_bytes()
    with FusionEngine.from_pretrained(model_dir, store=store) as engine:
        engine.ingest([replace(town(7), id="town-1")])
    path.write_bytes(old)
    assert areas(list(find_damage(store))) == [("documents", False)]
    assert areas(list(repair(store))) == [("documents", True)]
    assert path.with_name(f"{path.name}.damaged").read_bytes() == old
    (store / CATALOG_FILE).unlink()
    list(repair(store))
    with Catalog.open(store / CATALOG_FILE) as catalog:
        texts = [record.chunk.text for record in all_records(catalog)]
    assert any("Town number 7" in text for text in texts)
    assert not any("Town number 1 " in text for text in texts)


def test_a_damaged_manifest_that_the_catalog_does_not_know_is_put_aside(store: Path) -> None:
    path = sorted(files(store, "documents/**/*"))[0]
    flip(path)
    damaged = path.read_bytes()
    with Catalog.open(store / CATALOG_FILE) as catalog:
        catalog.documents.delete(catalog.documents.all())
    assert areas(list(repair(store)))[:3] == [("documents", True)] * 3
    assert not path.exists()
    assert path.with_name(f"{path.name}.damaged").read_bytes() == damaged


@pytest.mark.parametrize("how", ["deleted", "killed", "left out", "replaced", "unknown"])
def test_what_was_put_aside_of_a_document_goes_with_its_text(
    store: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    aside = []
    for name in ("town-0", "town-1", "town-9"):
        path = Manifests(store).path_of(DocumentKey(name))
        path.parent.mkdir(exist_ok=True)
        aside.append(path.with_name(f"{path.name}.damaged"))
        aside[-1].write_text("what it said")
    engine = FusionEngine.from_pretrained(model_dir, store=store)
    others = [town(0), town(2)]
    if how == "killed":
        monkeypatch.setattr(engine.store.catalog.documents, "delete", killed)
        with pytest.raises(KeyboardInterrupt):
            engine.delete(["town-1"])
        monkeypatch.undo()
        engine.ingest(others)
    elif how == "left out":
        engine.ingest(others, delete_others=True)
    elif how == "replaced":
        engine.ingest([*others, replace(town(7), id="town-1")])
    else:
        engine.delete(["town-9" if how == "unknown" else "town-1"])
    engine.close()
    there = [path.exists() for path in aside]
    assert there == ([True, True, False] if how == "unknown" else [True, False, True])
    assert not list((store / "documents" / "deleted").glob("*"))


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def a_byte(path: Path) -> None:
    path.write_bytes(b"S")


def without_tables(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE notes (text)")
        db.execute("DROP TABLE notes")


@pytest.mark.parametrize("damage", [Path.unlink, emptied, a_byte, without_tables])
@pytest.mark.parametrize("file", [None, "store.json"], ids=["", "and store.json"])
def test_a_store_without_its_catalog_is_no_empty_place(
    store: Path, model_dir: Path, damage: Callable[[Path], None], file: str | None
) -> None:
    """Nothing is changed, by whoever opens it, and `repair` restores all of it."""
    before = rows(store)
    damage(store / CATALOG_FILE)
    info = (store / "store.json").read_bytes()
    if file:
        (store / file).unlink()
    left = files(store, "**/*")
    for salt in ("", "another"):
        with pytest.raises(StoreError, match="`fusionrag repair` rebuilds it"):
            FusionEngine.from_pretrained(model_dir, store=store, salt=salt)
    with pytest.raises(StoreError, match="has lost its catalog"):
        Store.open(store)
    assert files(store, "**/*") == left
    assert areas(list(repair(store))) == [("catalog", True)]
    assert rows(store) == before
    assert (store / "store.json").read_bytes() == info


@pytest.mark.parametrize("directory", ["documents", "kv", "index"])
def test_any_part_of_a_store_is_enough(
    store: Path, model_dir: Path, tmp_path: Path, directory: str
) -> None:
    shutil.copytree(store / directory, tmp_path / "left" / directory)
    with pytest.raises(StoreError, match=rf"is missing or empty beside {directory}\."):
        FusionEngine.from_pretrained(model_dir, store=tmp_path / "left")
    if directory != "documents":  # without store.json, too, there is nothing to make it of
        for work in (find_damage, repair):
            with pytest.raises(StoreError, match="can't be rebuilt without documents"):
                list(work(tmp_path / "left"))


def a_dangling_link(path: Path) -> None:
    path.symlink_to("/nowhere/at/all")


@pytest.mark.parametrize("place", [Path.touch, Path.mkdir, a_dangling_link])
@pytest.mark.parametrize(
    "name",
    [
        *("catalog.sqlite", "catalog.sqlite.damaged", "catalog.sqlite.new", "documents"),
        *("index", "index.damaged", "kv", "corrections"),
    ],
)
def test_remains_of_a_store_are_no_empty_place(
    store: Path, model_dir: Path, tmp_path: Path, name: str, place: Callable[[Path], None]
) -> None:
    """A link that leads nowhere is one to a disk that isn't there just now."""
    left = tmp_path / "left"
    left.mkdir()
    shutil.copy(store / "store.json", left)
    place(left / name)
    if place is Path.mkdir and name != "catalog.sqlite":
        (left / name / "ab").mkdir()  # directories alone are nothing
        FusionEngine.from_pretrained(model_dir, store=left).close()
        return
    if place is Path.touch and name == "catalog.sqlite":
        FusionEngine.from_pretrained(model_dir, store=left).close()  # an empty file is nothing
        return
    with pytest.raises(StoreError, match=re.escape(name)):
        FusionEngine.from_pretrained(model_dir, store=left, salt="another")
    assert {path.name for path in left.iterdir()} <= {name, "store.json", "documents"}
    with pytest.raises(StoreError):
        Store.open(left)
    with pytest.raises(StoreError, match="can't be rebuilt"):
        list(repair(left))


def test_what_a_making_that_was_stopped_leaves_is_an_empty_place(
    store: Path, model_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "left" / "documents" / "tmp").mkdir(parents=True)
    shutil.copy(store / "store.json", tmp_path / "left")
    engine = FusionEngine.from_pretrained(model_dir, store=tmp_path / "left", salt="another")
    assert engine.store.catalog.counts().documents == 0


def test_what_the_store_was_made_with_is_written_anew(store: Path) -> None:
    before = (store / "store.json").read_bytes()
    flip(store / "store.json")
    assert areas(list(repair(store))) == [("documents", True)]
    assert (store / "store.json").read_bytes() == before


def test_without_catalog_and_store_file_nothing_is_guessed(store: Path) -> None:
    destroyed(store / CATALOG_FILE)
    flip(store / "store.json")
    flip(store / "documents" / "store.json")
    with pytest.raises(StoreError, match=r"store\.json"):
        list(repair(store))
    assert (store / CATALOG_FILE).read_bytes().startswith(b"no database")


def change_of_the_store(store: Path, column: str) -> None:
    """As a flipped bit does."""
    with sqlite3.connect(store / CATALOG_FILE) as db:
        ((value,),) = db.execute(f"SELECT {column} FROM store")
        match value:
            case int():
                changed: object = value ^ 1
            case bytes():
                changed = bytes([value[0] ^ 1, *value[1:]])
            case _:
                changed = chr(ord(value[0]) ^ 1) + value[1:] if value else "x"
        db.execute(f"UPDATE store SET {column} = ?", (changed,))


@pytest.mark.parametrize("column", [*(field.name for field in fields(StoreInfo)), "info_sum"])
def test_what_the_catalog_says_of_the_store_itself_is_put_right_by_the_files(
    store: Path, model_dir: Path, column: str
) -> None:
    before, left = rows(store), everything_but_the_catalog(store)
    change_of_the_store(store, column)
    for opened in (Store.open, lambda path: FusionEngine.from_pretrained(model_dir, store=path)):
        with pytest.raises(StoreError, match="`fusionrag repair`"):
            opened(store)
    assert areas(list(find_damage(store))) == [("catalog", False)]
    assert areas(list(repair(store))) == [("catalog", True)]
    assert rows(store) == before
    assert everything_but_the_catalog(store) == left
    assert list(find_damage(store)) == []


def everything_but_the_catalog(store: Path) -> dict[Path, bytes]:
    """All that is kept in files of its own; not the index, which is looked at by itself."""
    return {
        path: content
        for pattern in ("store.json", "documents/**/*", "kv/**/*")
        for path, content in files(store, pattern).items()
        if path.name != "revision.json"
    }


@pytest.mark.parametrize("other", ["store.json", "documents/store.json"])
def test_the_row_is_put_right_by_the_file_that_it_was_written_with(store: Path, other: str) -> None:
    """The other file is another store's, or says nothing."""
    before = rows(store)
    Manifests(store.parent / "another").notes.write_info(
        replace(before["info"][0][0], signature="x")
    )
    for content in ((store.parent / "another" / "store.json").read_bytes(), b"{}"):
        (store / other).write_bytes(content)
        change_of_the_store(store, "signature")
        assert ("catalog", True) in areas(list(repair(store)))
        assert rows(store) == before
        assert list(find_damage(store)) == []


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM store",
        "INSERT INTO store SELECT * FROM store",
        "UPDATE store SET signature = 'x', info_sum = x'00'",
        "UPDATE store SET revision = 'x'",
        "UPDATE store SET revision = -1",
        "UPDATE store SET texts = 1.5",
        "ALTER TABLE store DROP COLUMN probes",
        "DROP TABLE store",
    ],
)
def test_whatever_becomes_of_that_row_the_store_is_mended(store: Path, statement: str) -> None:
    before, left = rows(store), everything_but_the_catalog(store)
    with sqlite3.connect(store / CATALOG_FILE) as db:
        db.execute(statement)
    with pytest.raises(StoreError, match="`fusionrag repair`"):
        Store.open(store)
    assert areas(list(find_damage(store))) == [("catalog", False)]
    assert areas(list(repair(store))) == [("catalog", True)]
    assert rows(store) == before
    assert everything_but_the_catalog(store) == left
    assert list(find_damage(store)) == []


@pytest.mark.parametrize("lost", [(), ("documents/revision.json",)], ids=["", "revision.json"])
def test_an_older_catalog_is_older_than_a_rebuilt_one(
    store: Path, model_dir: Path, lost: tuple[str, ...]
) -> None:
    with FusionEngine.from_pretrained(model_dir, store=store) as engine:
        for number in range(4):
            engine.ingest([replace(town(number), id="secret")])
        old = (store / CATALOG_FILE).read_bytes()
        noted = engine.store.catalog.revision
        engine.delete(["secret"])
    for name in (CATALOG_FILE, *lost):
        (store / name).unlink()
    list(repair(store))
    with Catalog.open(store / CATALOG_FILE) as catalog:
        assert catalog.revision > noted
    (store / CATALOG_FILE).write_bytes(old)
    with pytest.raises(StoreError, match="has a catalog that is older"):
        Store.open(store)


@pytest.fixture(scope="module")
def another(made: Path, model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the same model and of as many documents, which was changed more often."""
    path = tmp_path_factory.mktemp("another") / "store"
    with FusionEngine.from_pretrained(model_dir, store=path, chunk_tokens=48) as engine:
        for number in range(3):
            engine.ingest([replace(town(10 + number), id=f"town-{number}")])
        engine.ingest([town(9)])
        engine.delete(["town-9"])
    return path


@pytest.mark.parametrize(
    ("lost", "copied"),
    [
        (None, ()),
        ("store.json", ()),
        ("documents/store.json", ()),
        ("documents/revision.json", ()),
        (None, ("store.json",)),
        (None, ("documents/store.json",)),
    ],
)
def test_another_stores_catalog_is_not_believed(
    store: Path, another: Path, model_dir: Path, lost: str | None, copied: tuple[str, ...]
) -> None:
    """Nor where one other file comes with it: the others say whose the documents are."""
    before, left = rows(store), everything_but_the_catalog(store)
    for name in (CATALOG_FILE, *copied):
        shutil.copy(another / name, store / name)
    if lost:
        (store / lost).unlink()
    for opened in (Store.open, lambda path: FusionEngine.from_pretrained(model_dir, store=path)):
        with pytest.raises(StoreError, match="is another store's"):
            opened(store)
    assert areas(list(find_damage(store))) == [("catalog", False)]
    assert areas(list(repair(store))) == [("catalog", True)]
    assert rows(store) == before
    assert everything_but_the_catalog(store) == left
    with FusionEngine.from_pretrained(model_dir, store=store) as engine:
        report = engine.ingest([])
        assert (report.isolated_computed, report.fused_computed) == (0, 0)
    assert everything_but_the_catalog(store) == left
    assert list(find_damage(store)) == []


@pytest.mark.parametrize("other", ["store.json", "documents/store.json"])
def test_one_file_of_another_store_is_written_anew(store: Path, another: Path, other: str) -> None:
    """Two of the three decide: the catalog and the other file."""
    before, left = rows(store), everything_but_the_catalog(store)
    shutil.copy(another / "store.json", store / other)
    Store.open(store).close()
    assert areas(list(find_damage(store))) == [("documents", False)]
    assert areas(list(repair(store))) == [("documents", True)]
    assert rows(store) == before
    assert everything_but_the_catalog(store) == left


def test_a_lost_catalog_is_made_anew_by_the_file_that_the_documents_are_of(store: Path) -> None:
    """The other one is of another model's store: none of the documents could be read by it."""
    before, left = rows(store), everything_but_the_catalog(store)
    elsewhere = store.parent / "another"
    Manifests(elsewhere).notes.write_info(
        replace(before["info"][0][0], signature="another", store_id="another")
    )
    shutil.copy(elsewhere / "store.json", store)
    (store / CATALOG_FILE).unlink()
    assert ("catalog", True) in areas(list(repair(store)))
    assert rows(store) == before
    assert everything_but_the_catalog(store) == left


@pytest.mark.parametrize("damage", [None, destroyed])
def test_documents_are_never_given_up_for_the_files_of_another_models_store(
    store: Path, damage: Callable[[Path], None] | None
) -> None:
    """Both say another model: the catalog tells better, or else nobody does."""
    before, left = rows(store), everything_but_the_catalog(store)
    elsewhere = store.parent / "another"
    info = replace(before["info"][0][0], signature="another", store_id="another")
    Manifests(elsewhere).notes.write_info(info)
    for name in ("store.json", "documents/store.json"):
        shutil.copy(elsewhere / "store.json", store / name)
    if damage:
        damage(store / CATALOG_FILE)
        copied = files(store, "**/*")
        with pytest.raises(StoreError, match="is of the store that"):
            list(repair(store))
        assert files(store, "**/*") == copied
        return
    assert ("catalog", True) in areas(list(repair(store)))
    assert rows(store) == before
    assert everything_but_the_catalog(store) == left


def test_nothing_is_made_anew_without_the_documents(store: Path) -> None:
    """They may lie on a disk that isn't there just now."""
    destroyed(store / CATALOG_FILE)
    (store / "documents").rename(store.parent / "elsewhere")
    left = files(store, "**/*")
    with pytest.raises(StoreError, match="can't be rebuilt without documents"):
        list(repair(store))
    assert files(store, "**/*") == left


def test_stores_of_the_same_documents_differ_in_nothing_but_their_ids(
    made: Path, model_dir: Path, tmp_path: Path
) -> None:
    with FusionEngine.from_pretrained(model_dir, store=tmp_path / "again", chunk_tokens=48) as e:
        e.ingest([town(0), town(1), town(2)])
    assert kept(tmp_path / "again") == kept(made)
    infos = [Manifests(store).notes.info() for store in (made, tmp_path / "again")]
    assert len({"", *(info.store_id for info in infos)}) == 3


def test_the_slower_of_two_makers_leaves_the_store_as_it_is(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = Manifests(made).notes.info()
    create = Catalog.create

    def overtaken(path: Path, info: StoreInfo) -> Catalog:
        monkeypatch.undo()
        Store.create(tmp_path / "store", info).close()
        return create(path, info)

    monkeypatch.setattr(Catalog, "create", overtaken)
    with pytest.raises(StoreError, match="already; open it instead"):
        Store.create(tmp_path / "store", info)
    with Store.open(tmp_path / "store") as corpus, corpus.writing():
        assert corpus.manifests.notes.info() == corpus.catalog.info


def test_damaged_records_go_and_no_others(store: Path, model_dir: Path) -> None:
    before = files(store, "kv/??/*")
    flipped, cut, copied, other = sorted(before)[:4]
    flip(flipped)
    torn(cut)
    shutil.copy(other, copied)
    stranger = store / "kv" / "README"
    stranger.write_text("mine")
    problems = list(repair(store))
    assert {p.path for p in problems if p.fixed} == {flipped, cut, copied}
    assert {p.path for p in problems if not p.fixed} == {stranger}
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


def without_database(index: Path) -> None:
    (index / "chroma.sqlite3").unlink()


def with_empty_database(index: Path) -> None:
    (index / "chroma.sqlite3").write_bytes(b"")


def with_another_database(index: Path) -> None:
    (index / "chroma.sqlite3").write_bytes(b"x" * 5000)


def without_files(index: Path) -> None:
    shutil.rmtree(index)
    index.mkdir()


@pytest.mark.parametrize(
    "damage",
    [
        *(without_database, with_empty_database, with_another_database),
        *(without_files, shutil.rmtree),
    ],
)
def test_a_lost_index_is_noticed_and_made_of_the_catalog(
    store: Path, damage: Callable[[Path], None]
) -> None:
    corpus = Store.open(store)
    before = corpus.search("Where is the fox?", 9)
    corpus.close()
    damage(store / "index")
    left = files(store, "index/**/*")
    assert areas(list(find_damage(store))) == [("index", False)]
    assert files(store, "index/**/*") == left
    with pytest.raises(StoreError, match="`fusionrag repair`"):
        Store.open(store)
    assert areas(list(repair(store))) == [("index", True)]
    assert Store.open(store).search("Where is the fox?", 9) == before
    assert list(find_damage(store)) == []


def test_lost_vectors_are_found_and_taken_from_the_documents(store: Path) -> None:
    with Store.open(store) as corpus:
        before = corpus.search("Where is the fox?", 9)
    with sqlite3.connect(store / CATALOG_FILE) as db:
        db.execute("DELETE FROM vectors WHERE chunk_id = ?", (before[0].chunk.id,))
    with Store.open(store) as corpus:
        found = corpus.search("Where is the fox?", 9)
    assert [hit.chunk for hit in found] == [hit.chunk for hit in before]
    assert areas(list(find_damage(store))) == [("catalog", False)]
    assert areas(list(repair(store))) == [("catalog", True)]
    assert list(find_damage(store)) == []
    with Store.open(store) as corpus:
        assert corpus.search("Where is the fox?", 9) == before


def test_an_ingest_embeds_what_has_no_vector_anywhere(store: Path, model_dir: Path) -> None:
    with Store.open(store) as corpus:
        before = corpus.search("Where is the fox?", 9)
        with sqlite3.connect(store / CATALOG_FILE) as db:
            db.execute("DELETE FROM vectors")
        corpus.changes.note_links(corpus.catalog.documents.all())  # manifests without vectors
    assert areas(list(repair(store))) == [("catalog", False)] * 3
    with FusionEngine.from_pretrained(model_dir, store=store) as engine:
        assert engine.ingest([]).isolated_computed == 0
        assert engine.store.search("Where is the fox?", 9) == before
    assert list(find_damage(store)) == []


def test_a_reader_follows_a_catalog_that_was_put_in_the_place_of_its_own(
    store: Path, model_dir: Path
) -> None:
    def found() -> set[str]:
        return {hit.chunk.document_id for hit in reader.search("town", 99)}

    with Store.open(store) as reader:
        assert found() == {"town-0", "town-1", "town-2"}
        (store / CATALOG_FILE).unlink()
        list(repair(store))
        with FusionEngine.from_pretrained(model_dir, store=store) as engine:
            engine.delete(["town-0"])
        assert found() == {"town-1", "town-2"}


def test_values_that_cannot_be_filtered_by_are_no_damage(model_dir: Path, tmp_path: Path) -> None:
    odd = {
        "nan": math.nan,
        "inf": -math.inf,
        "large": 2**70,
        "small": -(2**70),
        "list": [1],
        "largest": 2**63 - 1,
    }
    with FusionEngine.from_pretrained(model_dir, store=tmp_path / "store") as engine:
        engine.ingest([replace(town(0), metadata=odd)])
        assert engine.store.search("fox", 1, where={"largest": 2**63 - 1})
    assert list(find_damage(tmp_path / "store")) == []


def with_other_vectors(index: Path) -> None:
    with sqlite3.connect(index / "chroma.sqlite3") as db:
        db.execute(
            "UPDATE embeddings_queue SET vector = (SELECT max(vector) FROM embeddings_queue)"
        )


def with_another_scope(index: Path) -> None:
    with sqlite3.connect(index / "chroma.sqlite3") as db:
        db.execute("UPDATE embedding_metadata SET string_value = 'x' WHERE key = 'scope'")


def without_a_chunk(index: Path) -> None:
    with sqlite3.connect(index / "chroma.sqlite3") as db:
        db.execute("DELETE FROM embeddings WHERE id = 1")


def with_a_stranger(index: Path) -> None:
    opened = ChromaIndex(index)
    opened.add([Chunk("x", "x", 0, "x")], [[0.5] * 2048])
    opened.close()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (with_other_vectors, "the vectors or the metadata"),
        (with_another_scope, "the vectors or the metadata"),
        (without_a_chunk, "1 chunks are missing"),
        (with_a_stranger, "holds 1 chunks that the catalog doesn't know"),
    ],
)
def test_an_index_that_is_another_than_the_catalogs_is_found(
    store: Path, damage: Callable[[Path], None], said: str
) -> None:
    damage(store / "index")
    (problem,) = find_damage(store)
    assert said in problem.message
    assert areas(list(repair(store))) == [("index", True)]
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
    corpus = Store.open(store)
    for path in corpus.manifests.paths():
        manifest = corpus.manifests.read(path)
        records = corpus.catalog.chunks.records(corpus.catalog.chunks.ids([manifest.document]))
        assert list(manifest.records) == list(records.values())
        assert list(manifest.neighbours) == list(map(corpus.catalog.kv.neighbours, records))
        assert json.loads(path.read_bytes().split(b"\n", 1)[1])["id"] == manifest.document.id
    corpus.close()


def test_every_file_is_its_owners_alone(model_dir: Path, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        path = tmp_path / "store"
        path.mkdir()  # by somebody who let others in
        FusionEngine.from_pretrained(model_dir, store=path, chunk_tokens=48).ingest([town(0)])
    finally:
        os.umask(before)
    assert not [p for p in path.rglob("*") if p.stat().st_mode & 0o077]


@pytest.mark.parametrize("name", ["catalog.sqlite", "index", "index/chroma.sqlite3"])
def test_no_link_in_a_store_is_followed(store: Path, model_dir: Path, name: str) -> None:
    elsewhere = store.parent / "elsewhere"
    (store / name).rename(elsewhere)
    (store / name).symlink_to(elsewhere)
    before = files(store.parent, "elsewhere*/**/*")
    with pytest.raises(StoreError, match="is a symbolic link, which is not followed"):
        FusionEngine.from_pretrained(model_dir, store=store)
    assert [problem.fixed for problem in find_damage(store)][:1] == [False]
    assert files(store.parent, "elsewhere*/**/*") == before


def test_no_calibration_in_a_store_is_a_link(store: Path, model_dir: Path) -> None:
    elsewhere = store.parent / "elsewhere.json"
    elsewhere.write_text('{"format": 1, "calibrations": {}}')
    (store / "calibration.json").symlink_to(elsewhere)
    with pytest.raises(InvalidInputError, match=r"calibration\.json is no calibration"):
        FusionEngine.from_pretrained(model_dir, store=store)


def test_a_store_may_lie_behind_a_link(store: Path, model_dir: Path) -> None:
    link = store.parent / "link"
    link.symlink_to(store)
    with FusionEngine.from_pretrained(model_dir, store=link) as engine:
        assert engine.ingest([town(5)]).documents_new == 1
        assert engine.delete(["town-0"]) == 1
    (store / "calibration.json").write_text('{"format": 1, "calibrations": {}}')
    with FusionEngine.from_pretrained(model_dir, store=link) as engine:
        assert len(engine.store.catalog.documents.all()) == 3
    assert list(find_damage(link)) == list(repair(link)) == []


def a_directory(path: Path) -> None:
    path.mkdir()


def a_link(path: Path) -> None:
    elsewhere = path.parents[3] / "elsewhere"
    elsewhere.write_text("mine")
    path.symlink_to(elsewhere)


@pytest.mark.parametrize("place", [a_directory, os.mkfifo, a_link])
@pytest.mark.parametrize(
    "file",
    [
        *("kv/??/*", "documents/??/*.json", "documents/store.json", "documents/revision.json"),
        *("store.json", "corrections/0", "unfinished", "calibration.json", "catalog.sqlite"),
    ],
)
def test_whatever_stands_in_a_files_place_makes_way(
    store: Path, model_dir: Path, file: str, place: Callable[[Path], None]
) -> None:
    path = next(iter(sorted(store.glob(file))), store / file)
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    place(path)
    assert list(find_damage(store))
    assert all(problem.fixed for problem in repair(store))
    with FusionEngine.from_pretrained(model_dir, store=store) as engine:
        engine.ingest([town(0), town(1), town(2)])
        assert engine.answer("Where is the fox?", AnswerSettings(max_tokens=1)).text is not None
    assert list(find_damage(store)) == []
    for left in path.parents[3].glob("elsewhere"):
        assert left.read_text() == "mine"


def test_a_directory_that_holds_something_is_nobodys_to_remove(store: Path) -> None:
    record = sorted(files(store, "kv/??/*"))[0]
    record.unlink()
    record.mkdir()
    (record / "mine").touch()
    assert [problem.path for problem in repair(store) if not problem.fixed] == [record]
    assert (record / "mine").exists()


def test_a_link_in_the_place_of_the_lock_is_not_written_through(
    store: Path, model_dir: Path
) -> None:
    elsewhere = store.parent / "elsewhere"
    elsewhere.write_text("mine")
    (store / LOCK_FILE).unlink()
    (store / LOCK_FILE).symlink_to(elsewhere)
    engine = FusionEngine.from_pretrained(model_dir, store=store)
    with pytest.raises(StoreError, match="symbolic link"):
        engine.ingest([town(5)])
    with pytest.raises(StoreError, match="symbolic link"):
        list(repair(store))
    assert elsewhere.read_text() == "mine"
    engine.store.close()
