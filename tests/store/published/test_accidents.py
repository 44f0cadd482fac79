"""Accidents of several writers and readers, each of which once lost or hid something."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from fusionrag_integrations import Store
from fusionrag_integrations.errors import StoreBusyError, StoreError, StoreUnreachableError
from fusionrag_integrations.store import Budgets
from fusionrag_integrations.store.kv.shared import object_name
from fusionrag_integrations.store.objects.base import Objects
from fusionrag_integrations.store.objects.directory import DirectoryObjects
from fusionrag_integrations.store.published import reader_note, writer_lease
from fusionrag_integrations.store.published.collecting import collect
from fusionrag_integrations.store.published.verifying import find_damage_at
from fusionrag_integrations.store.published.version_log import VersionLog
from fusionrag_integrations.store.published.writer_lease import WriterLease
from tests.conftest import document_ids, town
from tests.store.published.sharing import Open, ask, live_keys, same, towns


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/shared"


def another_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    monkeypatch.setenv("FUSIONRAG_CACHE", str(tmp_path / name))


def test_a_store_is_not_created_over_another(
    opened: Open, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two machines find no store; the slower one creates it after the other has ingested."""
    create = Store.create.__func__

    def slowly(cls: type[Store], *given: object, **named: object) -> Store:
        monkeypatch.setattr(Store, "create", classmethod(create))
        opened(url).ingest(towns(2))
        return Store.create(*given, **named)

    monkeypatch.setattr(Store, "create", classmethod(slowly))
    with pytest.raises(StoreError, match="already; open it instead"):
        opened(url)
    assert document_ids(opened(url).store.catalog) == ["town-0", "town-1"]


def test_a_writer_that_sleeps_while_versions_are_collected(
    opened: Open, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = opened(url), opened(url)
    first.ingest([town(0)])
    now = time.time()

    def sleep(stage: str, done: int, total: int) -> None:
        if stage == "fused" and done == total:
            with monkeypatch.context() as patch:
                patch.setattr(time, "time", lambda: now + writer_lease.SECONDS + 1)
                for number in (1, 2, 3):
                    second.ingest([town(number)])
                patch.setattr(time, "time", lambda: now + 2 * writer_lease.SECONDS + 1)
                collect(url, grace=0)
                collect(url, grace=0)

    with pytest.raises(StoreBusyError):
        first.ingest([town(7)], progress=sleep)
    assert document_ids(opened(url).store.catalog) == [f"town-{i}" for i in range(4)]


def test_a_lost_note_hides_nothing_after_collecting(
    opened: Open, url: str, objects: Objects
) -> None:
    opened(url).ingest(towns(2))
    collect(url, grace=0)
    collect(url, grace=0)
    objects.delete(["newest"])
    assert document_ids(opened(url).store.catalog) == ["town-0", "town-1"]


@pytest.mark.parametrize("note", [None, b"", b"of another format", b"1", b"2", b"3"])
def test_what_a_note_says_hides_nothing_where_an_old_version_was_kept(
    opened: Open, url: str, objects: Objects, note: bytes | None
) -> None:
    """A reader holds the first version, so that collecting leaves it, and what is between goes."""
    reader, writer = opened(url), opened(url)
    writer.ingest([town(0)])
    for number in (1, 2, 3):
        writer.ingest([town(number)])
    collect(url, grace=0)
    assert VersionLog(objects).numbers()[0] == reader.store.version
    objects.delete(["newest"])
    if note is not None:
        objects.write("newest", [note])
    everything = [f"town-{number}" for number in range(4)]
    assert document_ids(opened(url).store.catalog) == everything
    writer.refresh()
    assert document_ids(writer.store.catalog) == everything
    writer.delete(["town-0"])
    assert reader.refresh()
    assert document_ids(reader.store.catalog) == everything[1:]


def damage(objects: Objects, number: int) -> None:
    objects.write(f"versions/{number:012d}.json", [b"{}"])


def test_an_old_version_that_is_damaged_is_found_and_collected(
    opened: Open, url: str, objects: Objects
) -> None:
    writer = opened(url)
    writer.ingest(towns(2))
    writer.delete(["town-1"])
    damage(objects, 2)
    (problem,) = find_damage_at(url)
    assert "000000000002.json is damaged" in problem.message
    with pytest.raises(StoreError, match="Put it back, or delete it"):
        collect(url)  # within its grace, so which KV it needs must be known
    assert collect(url, grace=0).versions == 2
    assert list(find_damage_at(url)) == []
    assert document_ids(opened(url).store.catalog) == ["town-0"]


@pytest.mark.parametrize("away", ["versions/000000000001", "versions/000000000002", "blocks/"])
def test_a_storage_that_is_away_is_no_damage(
    opened: Open, url: str, monkeypatch: pytest.MonkeyPatch, away: str
) -> None:
    opened(url).ingest(towns(1))
    read = DirectoryObjects.read

    def refuse(objects: DirectoryObjects, name: str) -> bytes:
        if name.startswith(away):
            raise StoreUnreachableError("it is away")
        return read(objects, name)

    monkeypatch.setattr(DirectoryObjects, "read", refuse)
    with pytest.raises(StoreUnreachableError, match="it is away"):
        list(find_damage_at(url))


def test_the_newest_version_damaged_and_deleted_gives_way_to_the_one_before(
    opened: Open, url: str, objects: Objects
) -> None:
    writer = opened(url)
    writer.ingest(towns(1))
    writer.ingest(towns(2))
    damage(objects, writer.store.version)
    with pytest.raises(StoreError, match="the store goes back to the version before it"):
        opened(url)
    objects.delete([f"versions/{writer.store.version:012d}.json"])
    again = opened(url)
    assert document_ids(again.store.catalog) == ["town-0"]
    again.ingest(towns(3))
    writer.refresh()
    assert len(document_ids(writer.store.catalog)) == 3


def test_another_store_at_the_same_url_is_told_apart(
    opened: Open, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = opened(url)
    writer.ingest([town(0)])
    writer.close()
    another_machine(monkeypatch, tmp_path, "second machine")
    shutil.rmtree(tmp_path / "shared")
    again = opened(url)
    again.ingest([town(1)])
    another_machine(monkeypatch, tmp_path, "cache")
    assert document_ids(opened(url).store.catalog) == ["town-1"]


def test_an_overtaken_deletion_is_given_up(
    opened: Open, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = opened(url), opened(url)
    first.ingest(towns(3))

    def fail(*given: object) -> None:
        raise StoreUnreachableError("away")

    with monkeypatch.context() as patch:
        patch.setattr(type(first.store.manifests), "finish_deletes", fail)
        with pytest.raises(StoreError):
            first.delete(["town-1"])
    second.ingest([town(5)])
    first.ingest([town(6)])
    assert document_ids(first.store.catalog) == [f"town-{i}" for i in (0, 1, 2, 5, 6)]


def test_a_refresh_that_fails_leaves_the_reader_its_version(
    opened: Open, url: str, monkeypatch: pytest.MonkeyPatch, objects: Objects
) -> None:
    writer, reader = opened(url), opened(url, budgets=Budgets(host=0, disk=0))
    writer.ingest(towns(3))
    reader.refresh()
    keys = live_keys(reader)
    writer.delete(["town-2"])
    storage = type(objects)
    read = storage.read

    def away(self: Objects, name: str) -> bytes:
        if name.startswith("blocks/"):
            raise StoreUnreachableError("away")
        return read(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "read", away)
        with pytest.raises(StoreUnreachableError):
            reader.refresh()
    collect(url, grace=0)
    assert live_keys(reader) == keys
    assert {object_name(k) for k in keys} <= {entry.name for entry in objects.entries("kv")}
    assert ask(reader).missed_chunks == 0


def test_a_note_is_renewed_after_an_outage(
    objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_note, "SECONDS", 0.4)
    storage = type(objects)

    def away(*given: object) -> None:
        raise StoreUnreachableError("away")

    with reader_note.ReaderNote(objects) as note:
        note.set(3)
        with monkeypatch.context() as patch:
            patch.setattr(storage, "write", away)
            time.sleep(0.6)
        time.sleep(0.3)
        assert reader_note.noted(objects)[0] == {3}


def test_a_forked_child_leaves_its_parent_s_note(objects: Objects) -> None:
    with reader_note.ReaderNote(objects) as note:
        note.set(3)
        if not (child := os.fork()):
            note.close()
            os._exit(0)
        os.waitpid(child, 0)
        assert reader_note.noted(objects)[0] == {3}


def test_deleted_texts_are_overwritten_wherever_sqlite_was_built(
    opened: Open, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Free pages of a catalog are published with the others."""
    connect = sqlite3.connect

    def careless(*given: Any, **named: Any) -> sqlite3.Connection:
        db = connect(*given, **named)
        db.execute("PRAGMA secure_delete = OFF")
        return db

    monkeypatch.setattr(sqlite3, "connect", careless)
    catalog = opened(url).store.catalog
    assert catalog._database.column("PRAGMA secure_delete") == [1]


def test_a_lost_block_is_put_back_by_an_ingest_that_changes_nothing(
    opened: Open, url: str, objects: Objects
) -> None:
    writer = opened(url)
    writer.ingest(towns(2))
    newest = VersionLog(objects).newest()
    assert newest is not None
    (block,) = newest.files["catalog.sqlite"].blocks
    objects.delete([f"blocks/{block[:2]}/{block}"])
    writer.ingest(towns(2))
    assert list(find_damage_at(url)) == []


@pytest.mark.parametrize("damage", ["cut", "empty", "missing", "alone"])
def test_a_damaged_working_copy_is_made_anew(opened: Open, url: str, damage: str) -> None:
    writer = opened(url)
    writer.ingest(towns(2))
    wanted = ask(writer)
    path = writer.store.path
    writer.close()
    catalog = path / "catalog.sqlite"
    if damage == "cut":
        catalog.write_bytes(catalog.read_bytes()[:5000])
    elif damage == "empty":
        catalog.write_bytes(b"")
    else:
        catalog.unlink()
    if damage == "alone":
        for name in ("kv", "index", "documents", "corrections"):
            shutil.rmtree(path / name, ignore_errors=True)
    assert same(ask(opened(url)), wanted)


def test_a_copy_with_another_s_content_is_read_again(opened: Open, url: str) -> None:
    writer = opened(url, budgets=Budgets(host=0))
    writer.ingest(towns(3))
    wanted = ask(writer)
    copies = sorted((writer.store.path / "kv").glob("??/*"))
    contents = [path.read_bytes() for path in copies]
    for i, path in enumerate(copies):
        path.write_bytes(contents[i - 1])
    ask(writer)
    assert same(ask(writer), wanted)


def test_a_collection_that_was_overtaken_deletes_nothing(
    opened: Open, url: str, monkeypatch: pytest.MonkeyPatch, objects: Objects
) -> None:
    """What it found unused, another writer has used since."""
    writer = opened(url)
    writer.ingest(towns(2))
    writer.delete(["town-0", "town-1"])
    now = time.time()
    delete = VersionLog.delete_below

    def sleep(log: VersionLog, number: int) -> int:
        monkeypatch.setattr(VersionLog, "delete_below", delete)
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda: now + writer_lease.SECONDS + 1)
            writer.ingest(towns(2))
        return delete(log, number)

    monkeypatch.setattr(VersionLog, "delete_below", sleep)
    with pytest.raises(StoreBusyError, match="another writer has it now"):
        collect(url, grace=0)
    assert list(find_damage_at(url)) == []


def test_a_clock_that_was_ahead_holds_nobody_up(
    objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 86_400)
    WriterLease(objects)._beating.close()
    monkeypatch.setattr(time, "time", lambda: now + writer_lease.SECONDS + 1)
    with WriterLease(objects):
        pass


def test_a_full_disk_is_named(opened: Open, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, reader = opened(url), opened(url)
    writer.ingest(towns(2))

    def full(*given: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fusionrag_integrations.store.published.working_copy.write_file", full)
    for act in (reader.refresh, lambda: reader.ingest(towns(3)), lambda: opened(url)):
        with pytest.raises(StoreError, match="No space left"):
            act()


def test_what_was_interrupted_is_read_by_nobody_and_gone_on_with(
    opened: Open, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = opened(url)
    writer.ingest(towns(2))
    wanted = ask(writer)

    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "isolated":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        writer.ingest(towns(4), progress=interrupt)
    writer.close()
    reader = opened(url)
    assert reader.store.path == writer.store.path
    assert document_ids(reader.store.catalog) == ["town-0", "town-1"]
    assert same(ask(reader), wanted)
    report = reader.ingest(towns(4))
    assert (report.documents_new, report.documents_unchanged) == (0, 4)  # nothing embedded again
    assert same(ask(opened(url)), ask(reader))
