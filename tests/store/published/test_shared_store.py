"""A store at a URL, through the engine: what a store in a directory does, for several machines."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fusionrag_integrations import Document, FusionEngine, Store
from fusionrag_integrations.errors import (
    InvalidInputError,
    StoreBusyError,
    StoreNotFoundError,
    StoreUnreachableError,
)
from fusionrag_integrations.prompt import question_prompt
from fusionrag_integrations.store import Budgets
from fusionrag_integrations.store.catalog import Catalog
from fusionrag_integrations.store.kv import loader
from fusionrag_integrations.store.kv.shared import SharedKVFiles, object_name
from fusionrag_integrations.store.objects.base import Objects
from fusionrag_integrations.store.published import writer_lease
from fusionrag_integrations.store.published.verifying import find_damage_at, repair_at
from fusionrag_integrations.store.published.version_log import VersionLog
from fusionrag_integrations.store.published.writer_lease import WriterLease
from tests.conftest import all_records, document_ids, town
from tests.store.published.sharing import (
    SETTINGS,
    Open,
    ask,
    live_keys,
    reads_as_a_directory,
    same,
    towns,
)


@pytest.fixture
def url(tmp_path: Path) -> str:
    """What storages differ in, `test_objects.py` tries over each."""
    return f"file://{tmp_path}/shared"


def forget(engine: FusionEngine) -> None:
    """As if this machine had no copies: its disk was wiped."""
    assert engine.store.copies is not None
    for key in list(engine.kv.keys()):
        engine.kv.delete(key)


class TestAnswers:
    def test_they_are_those_of_a_directory(self, opened: Open, url: str, tmp_path: Path) -> None:
        reads_as_a_directory(opened, url, tmp_path / "store")

    def test_kv_comes_from_the_storage_once_and_then_from_this_disk(
        self, opened: Open, url: str
    ) -> None:
        opened(url).ingest(towns(3))
        reader = opened(url, budgets=Budgets(host=0))
        ask(reader)
        first = reader.metrics()
        assert first.shared.moved_bytes > 0
        assert first.disk.records == 3
        ask(reader)
        second = reader.metrics()
        assert second.shared == first.shared
        assert second.disk.moved_bytes > first.disk.moved_bytes

    def test_a_small_record_is_read_by_one_request_behind_its_beginning(
        self, opened: Open, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(loader, "WHOLE_BYTES", 0)  # in a directory it would be read by layers
        opened(url).ingest(towns(4))
        reader = opened(url, budgets=Budgets(disk=0))
        asked: list[tuple[str, int]] = []
        read_ranges = SharedKVFiles.read_ranges

        def counted(files: SharedKVFiles, name: str, ranges: Sequence[range]) -> list[bytes]:
            asked.append((name, len(ranges)))
            return read_ranges(files, name, ranges)

        monkeypatch.setattr(SharedKVFiles, "read_ranges", counted)
        assert ask(reader).missed_chunks == 0
        assert Counter(asked) == {(name, 1): 2 for name, _ in asked}
        assert len(asked) == 2 * 3

    def test_copies_stay_within_their_budget(self, opened: Open, url: str) -> None:
        writer = opened(url)
        writer.ingest(towns(6))
        record = writer.metrics().disk.bytes // writer.metrics().disk.records
        reader = opened(url, budgets=Budgets(host=0, disk=2 * record + record // 2))
        for number in range(6):
            ask(reader, f"What of the fox of town number {number}?")
            assert reader.metrics().disk.bytes <= 2 * record + record // 2
        assert reader.metrics().disk.evictions > 0
        assert reader.metrics().misses == 0

    def test_an_ingest_beyond_the_copies_budget_keeps_all(self, opened: Open, url: str) -> None:
        writer = opened(url, budgets=Budgets(disk=1))
        report = writer.ingest(towns(3))
        assert report.without_room == 0
        assert list(find_damage_at(url)) == []
        assert ask(opened(url)).missed_chunks == 0

    def test_a_store_that_keeps_no_kv_is_shared_too(self, model_dir: Path, url: str) -> None:
        for _ in range(2):
            with FusionEngine.from_pretrained(model_dir, store=url, kv="none") as engine:
                engine.ingest(towns(2))
                assert ask(engine).usage.reused_tokens == 0


class TestVersions:
    def test_a_reader_keeps_its_version_until_it_refreshes(self, opened: Open, url: str) -> None:
        writer = opened(url)
        writer.ingest(towns(2))
        reader = opened(url)
        before = ask(reader)
        writer.ingest([*towns(2), town(2)])
        assert len(document_ids(reader.store.catalog)) == 2
        assert same(ask(reader), before)
        assert reader.refresh()
        assert not reader.refresh()
        assert len(document_ids(reader.store.catalog)) == 3
        assert same(ask(reader), ask(writer))

    def test_what_is_stale_or_deleted_is_not_found_in_a_later_one(
        self, opened: Open, url: str
    ) -> None:
        writer, reader = opened(url), opened(url)
        writer.ingest(towns(3))
        assert reader.refresh()
        old = live_keys(reader)
        changed = Document(id="town-1", text="Town number 1 was drowned in the new lake.")
        writer.ingest([changed])
        writer.delete(["town-2"])
        assert reader.refresh()
        texts = {record.chunk.text for record in all_records(reader.store.catalog)}
        assert changed.text in texts
        assert not any("number 2" in text for text in texts)
        found = [hit.chunk.text for hit in reader.store.search("town number 1", 50)]
        assert set(found) == texts
        assert live_keys(reader) == live_keys(writer)
        assert old - live_keys(reader)
        assert same(ask(reader), ask(writer))

    def test_nothing_is_published_where_nothing_changed(
        self, opened: Open, url: str, objects: Objects
    ) -> None:
        writer = opened(url)
        writer.ingest(towns(2))
        newest = VersionLog(objects).newest()
        assert opened(url).ingest(towns(2)).isolated_computed == 0
        assert VersionLog(objects).newest() == newest

    def test_texts_of_requests_are_published_by_nobody(
        self, opened: Open, url: str, objects: Objects
    ) -> None:
        secret = "The vault opens to the word xylophonist, says the mayor of the hidden town. " * 3
        writer = opened(url)
        writer.ingest(towns(2))
        writer.register_texts([secret])
        writer.answer(question_prompt([secret], "Which word?"), SETTINGS)
        assert writer.store.catalog.counts().captured_chunks == 1
        adhoc = set(writer.store.catalog.adhoc.kv_keys())
        writer.ingest([town(2)])
        assert ask(writer).missed_chunks == 0
        for folder in ("blocks", "versions", "kv"):
            for entry in objects.entries(folder):
                assert b"xylophonist" not in objects.read(entry.name)
                assert not any(key in entry.name for key in adhoc)
        assert opened(url).store.catalog.counts().captured_chunks == 0

    def test_an_interrupted_ingest_is_gone_on_with(
        self, opened: Open, url: str, monkeypatch: pytest.MonkeyPatch, objects: Objects
    ) -> None:
        writer = opened(url)
        writer.ingest(towns(1))
        newest = VersionLog(objects).newest()

        def interrupt(stage: str, done: int, total: int) -> None:
            if stage == "fused" and done:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            writer.ingest(towns(4), progress=interrupt)
        assert VersionLog(objects).newest() == newest
        writer.close()
        again = opened(url)
        report = again.ingest(towns(4))
        assert report.isolated_computed == 0
        assert report.documents_new == 0  # this machine has them
        assert list(find_damage_at(url)) == []

    def test_another_machine_goes_on_with_it_too(
        self, opened: Open, url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        writer = opened(url)

        def interrupt(stage: str, done: int, total: int) -> None:
            if stage == "fused" and done:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            writer.ingest(towns(4), progress=interrupt)
        writer.close()
        monkeypatch.setenv("FUSIONRAG_CACHE", str(tmp_path / "another machine's"))
        report = opened(url).ingest(towns(4))
        assert (report.documents_new, report.isolated_computed) == (4, 0)

    def test_changes_that_another_writer_has_overtaken_give_way(
        self, opened: Open, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first, second = opened(url), opened(url)

        def interrupt(stage: str, done: int, total: int) -> None:
            if stage == "isolated":
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            first.ingest([town(7)], progress=interrupt)
        second.ingest(towns(2))
        first.ingest([town(3)])
        assert document_ids(first.store.catalog) == ["town-0", "town-1", "town-3"]
        assert second.refresh()
        assert live_keys(second) == live_keys(first)
        assert same(ask(second), ask(first))

    def test_an_invalid_document_leaves_those_before_it(self, opened: Open, url: str) -> None:
        writer, reader = opened(url), opened(url)
        with pytest.raises(InvalidInputError):
            writer.ingest([town(0), "no document"])
        assert reader.refresh()
        assert document_ids(reader.store.catalog) == ["town-0"]


class TestWriters:
    def test_two_at_once(self, opened: Open, url: str, objects: Objects) -> None:
        writer = opened(url)
        with WriterLease(objects), pytest.raises(StoreBusyError, match="has the lease"):
            writer.ingest(towns(1))
        writer.ingest(towns(1))

    def test_one_waits_for_what_takes_a_moment(self, opened: Open, url: str) -> None:
        writer = opened(url)
        begun, late = threading.Event(), threading.Event()

        def change() -> None:
            with writer.store.changing_here():
                begun.set()
                late.wait(0.3)

        with ThreadPoolExecutor(1) as pool:
            changing = pool.submit(change)
            begun.wait()
            writer.ingest(towns(1))
            changing.result()
        assert document_ids(writer.store.catalog) == ["town-0"]

    def test_a_look_for_a_newer_version_is_in_nobodys_way(self, opened: Open, url: str) -> None:
        reader = opened(url)
        with reader.store.changing_here():
            assert not reader.refresh()

    def test_one_whose_lease_was_taken_over_publishes_nothing(
        self, opened: Open, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first, second = opened(url), opened(url)
        now = time.time()

        def overtake(stage: str, done: int, total: int) -> None:
            if stage == "fused" and done == total:
                with monkeypatch.context() as patch:
                    patch.setattr(time, "time", lambda: now + writer_lease.SECONDS + 1)
                    second.ingest([town(1)])

        with pytest.raises(StoreBusyError, match="another writer has it now"):
            first.ingest([town(0)], progress=overtake)
        reader = opened(url)
        assert document_ids(reader.store.catalog) == ["town-1"]
        first.ingest([town(0)])
        assert document_ids(first.store.catalog) == ["town-0", "town-1"]

    def test_a_storage_that_may_not_be_written_is_read(
        self, opened: Open, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        writer = opened(url)
        writer.ingest(towns(2))
        wanted = ask(writer)
        storage = type(opened(url).store._parts.working_copy._objects)

        def refuse(objects: Objects, name: str, *given: object, **named: object) -> None:
            raise StoreUnreachableError(f"PermissionError: {name}")

        for method in ("write", "create", "delete"):
            monkeypatch.setattr(storage, method, refuse)
        reader = opened(url)
        assert same(ask(reader), wanted)
        with pytest.raises(StoreUnreachableError, match="PermissionError"):
            reader.ingest(towns(3))
        assert same(ask(reader), wanted)


class TestDamage:
    @pytest.fixture
    def reader(self, opened: Open, url: str) -> FusionEngine:
        opened(url).ingest(towns(3))
        return opened(url, budgets=Budgets(host=0))

    @pytest.mark.parametrize("damage", ["cut", "bit", "empty", "missing", "another's"])
    def test_kv_in_the_storage_is_a_counted_miss(
        self, reader: FusionEngine, objects: Objects, damage: str, url: str
    ) -> None:
        wanted = ask(reader)
        forget(reader)
        names = [object_name(key) for key in live_keys(reader)]
        contents = {name: objects.read(name) for name in names}
        for i, (name, content) in enumerate(contents.items()):
            if damage == "missing":
                objects.delete([name])
                continue
            bit = bytes([content[-9] ^ 4])
            damaged = {
                "cut": content[: len(content) // 2],
                "bit": content[:-9] + bit + content[-8:],
                "empty": b"",
                "another's": contents[names[i - 1]],
            }[damage]
            objects.write(name, [damaged])
        found = ask(reader)
        assert found.missed_chunks > 0
        assert found.usage.reused_tokens == 0
        assert len(list(find_damage_at(url))) == len(names)
        for problem in repair_at(url):
            assert problem.fixed == (damage != "missing")
        reader.ingest(towns(3))
        assert list(find_damage_at(url)) == []
        again = ask(reader)
        assert again.missed_chunks == 0
        assert again.text == wanted.text

    def test_a_damaged_copy_is_read_again_from_the_storage(self, reader: FusionEngine) -> None:
        wanted = ask(reader)
        directory = reader.store.path / "kv"
        copies = list(directory.glob("??/*"))
        assert copies
        for path in copies:
            content = bytearray(path.read_bytes())
            content[-9] ^= 4
            path.write_bytes(content)
        while ask(reader).fallbacks:  # each time those that were used are read again
            assert copies.pop()
        assert same(ask(reader), wanted)

    def test_a_lost_block_is_named(
        self, reader: FusionEngine, objects: Objects, url: str, opened: Open
    ) -> None:
        newest = VersionLog(objects).newest()
        assert newest is not None
        (block,) = newest.files["catalog.sqlite"].blocks
        objects.delete([f"blocks/{block[:2]}/{block}"])
        (problem,) = find_damage_at(url)
        assert block in problem.message
        assert not any(problem.fixed for problem in repair_at(url))
        reader.store.catalog.raise_revision()
        reader.ingest([town(5)])  # a machine that has the catalog publishes it
        assert list(find_damage_at(url)) == []

    def test_a_storage_that_is_away_is_not_waited_for_each_time(
        self, reader: FusionEngine, monkeypatch: pytest.MonkeyPatch, url: str
    ) -> None:
        asked: list[str] = []

        def away(objects: Objects, name: str, ranges: object) -> None:
            asked.append(name)
            raise StoreUnreachableError("it is away")

        storage = type(reader.store._parts.working_copy._objects)
        with monkeypatch.context() as patch:
            patch.setattr(storage, "read_ranges", away)
            found = ask(reader)
            assert found.usage.reused_tokens == 0
            assert found.missed_chunks > 0
            assert len(asked) <= 16  # those that were under way at once
            ask(reader)
        monkeypatch.setattr("fusionrag_integrations.store.kv.shared._REST", 0.0)
        reader.store._parts.working_copy.shared._away_until = 0.0
        assert ask(reader).missed_chunks == 0


def test_a_store_that_is_not_there(url: str) -> None:
    with pytest.raises(StoreNotFoundError, match="There is no store at"):
        Store.open(url)


def test_a_retriever_needs_no_model(opened: Open, url: str) -> None:
    opened(url).ingest(towns(3))
    with Store.open(url) as store:
        hits = store.search("town number 2", 3)
        assert len(hits) == 3
        assert all(hit.handle.fused_key for hit in hits if hit.handle)


def test_each_process_has_a_working_copy_of_its_own(opened: Open, url: str, cache: Path) -> None:
    first, second = opened(url), opened(url)
    assert first.store.path != second.store.path
    assert first.store.path.is_relative_to(cache)
    path = first.store.path
    first.close()
    assert opened(url).store.path == path


def test_catalogs_follow_those_that_replace_them(opened: Open, url: str) -> None:
    writer, reader = opened(url), opened(url)
    catalog: Catalog = reader.store.catalog
    seen = {catalog.revision}
    for number in range(3):
        writer.ingest([town(number)])
        reader.refresh()
        assert catalog.revision > max(seen)
        seen.add(catalog.revision)
