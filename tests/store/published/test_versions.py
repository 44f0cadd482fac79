"""Versions: blocks, the log, the writers' lease, and readers' notes."""

from __future__ import annotations

import json
import os
import time
from hashlib import sha256
from pathlib import Path

import pytest

from fusionrag_integrations.errors import StoreBusyError, StoreError, StoreMismatchError
from fusionrag_integrations.store.info import StoreInfo
from fusionrag_integrations.store.objects.base import Objects
from fusionrag_integrations.store.published import blocks, reader_note, writer_lease
from fusionrag_integrations.store.published.blocks import BLOCK_BYTES, download, upload
from fusionrag_integrations.store.published.reader_note import ReaderNote, noted
from fusionrag_integrations.store.published.version import PublishedFile, Version
from fusionrag_integrations.store.published.version_log import VersionLog
from fusionrag_integrations.store.published.writer_lease import WriterLease

INFO = StoreInfo(2, "ab" * 32, "a model", "an embedding", 48, "float32")


def version(number: int, by: str = "me") -> Version:
    files = {"catalog.sqlite": PublishedFile(3, ("ab" * 32,))}
    return Version(number, 12.5, by, INFO, files)


class TestVersions:
    def test_what_is_written_is_read(self) -> None:
        assert Version.from_bytes(version(7).to_bytes(), "x") == version(7)

    @pytest.mark.parametrize("damage", ["cut", "bit", "empty", "no JSON"])
    def test_damage_is_named(self, damage: str) -> None:
        content = version(7).to_bytes()
        damaged = {
            "cut": content[:-9],
            "bit": content.replace(b"a model", b"b model"),
            "empty": b"",
            "no JSON": b"x",
        }[damage]
        with pytest.raises(StoreError, match=r"s3://b/versions/7.json is damaged"):
            Version.from_bytes(damaged, "s3://b/versions/7.json")

    def test_another_release_s_is_named(self) -> None:
        head, _, body = version(7).to_bytes().partition(b"\n")
        later = json.dumps(json.loads(head) | {"version": 2}).encode() + b"\n" + body
        with pytest.raises(StoreMismatchError, match="this release reads version 1"):
            Version.from_bytes(later, "x")


class TestLog:
    def test_the_newest_is_the_last_published(self, objects: Objects) -> None:
        log = VersionLog(objects)
        assert log.newest() is None
        for number in (1, 2, 3):
            log.publish(version(number))
        assert log.newest() == version(3)
        assert log.numbers() == [1, 2, 3]

    def test_of_two_writers_of_a_number_one_publishes(self, objects: Objects) -> None:
        log = VersionLog(objects)
        log.publish(version(1))
        log.publish(version(2, by="me"))
        with pytest.raises(StoreBusyError, match="has published version 2"):
            log.publish(version(2, by="you"))
        assert log.newest() == version(2, by="me")

    @pytest.mark.parametrize("note", [None, b"1", b"9", b"no number", b"0"])
    def test_a_note_that_is_lost_or_old_hides_nothing(
        self, objects: Objects, note: bytes | None
    ) -> None:
        log = VersionLog(objects)
        for number in (1, 2, 3):
            log.publish(version(number))
        objects.delete(["newest"])
        if note is not None:
            objects.write("newest", [note])
        assert log.newest() == version(3)

    def test_nothing_is_listed_to_find_it(
        self, objects: Objects, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        log = VersionLog(objects)
        for number in (1, 2):
            log.publish(version(number))
        monkeypatch.setattr(objects, "entries", None)
        assert log.newest() == version(2)

    def test_a_version_that_is_gone_is_named(self, objects: Objects) -> None:
        log = VersionLog(objects)
        for number in (1, 2):
            log.publish(version(number))
        assert log.delete_below(2) == 1
        assert log.newest() == version(2)
        with pytest.raises(StoreError, match=r"000000000001.json is missing"):
            log.read(1)


class TestBlocks:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        path = tmp_path / "file"
        path.write_bytes(os.urandom(2 * BLOCK_BYTES + 100))
        return path

    def count_writes(self, objects: Objects, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        written: list[str] = []
        write = objects.write
        monkeypatch.setattr(objects, "write", lambda n, parts: (written.append(n), write(n, parts)))
        return written

    def test_a_file_comes_back(self, objects: Objects, path: Path) -> None:
        file = upload(objects, path)
        assert (file.nbytes, len(file.blocks)) == (2 * BLOCK_BYTES + 100, 3)
        assert b"".join(download(objects, file, path.with_name("none"))) == path.read_bytes()
        assert blocks.matches(path, file)

    def test_an_empty_file_has_no_blocks(self, objects: Objects, tmp_path: Path) -> None:
        (tmp_path / "empty").touch()
        file = upload(objects, tmp_path / "empty")
        assert file == PublishedFile(0, ())
        assert list(download(objects, file, tmp_path / "none")) == []
        assert blocks.matches(tmp_path / "empty", file)

    def test_only_what_changed_is_moved(
        self, objects: Objects, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = upload(objects, path)
        old = path.with_name("old")
        old.write_bytes(path.read_bytes())
        with path.open("r+b") as opened:
            opened.seek(BLOCK_BYTES + 5)
            opened.write(b"changed")
        written = self.count_writes(objects, monkeypatch)
        second = upload(objects, path)
        assert len(written) == 1
        assert [a == b for a, b in zip(first.blocks, second.blocks, strict=True)] == [1, 0, 1]
        read: list[str] = []
        whole = objects.read
        monkeypatch.setattr(objects, "read", lambda name: (read.append(name), whole(name))[1])
        assert b"".join(download(objects, second, old)) == path.read_bytes()
        assert read == written

    def test_what_is_there_is_not_written_again(
        self, objects: Objects, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        upload(objects, path)
        written = self.count_writes(objects, monkeypatch)
        upload(objects, path)
        assert written == []

    @pytest.mark.parametrize("damage", ["missing", "altered"])
    def test_damage_is_named(self, objects: Objects, path: Path, damage: str) -> None:
        file = upload(objects, path)
        name = blocks.block_name(file.blocks[1])
        assert sha256(objects.read(name)).hexdigest() == file.blocks[1]
        if damage == "missing":
            objects.delete([name])
        else:
            objects.write(name, [b"altered"])
        with pytest.raises(StoreError, match=name):
            list(download(objects, file, path.with_name("none")))


class TestLease:
    def test_one_writer_has_it_until_it_ends(self, objects: Objects) -> None:
        busy = pytest.raises(StoreBusyError, match=f"process {os.getpid()} on .* has the lease")
        with WriterLease(objects), busy:
            WriterLease(objects)
        with WriterLease(objects) as lease:
            lease.check()

    def test_one_that_is_not_renewed_expires(
        self, objects: Objects, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = WriterLease(objects)
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + writer_lease.SECONDS + 1)
        with WriterLease(objects) as second:
            second.check()
            with pytest.raises(StoreBusyError, match="another writer has it now"):
                first.check()
            first.close()  # which leaves the other's alone
            with pytest.raises(StoreBusyError, match="has the lease"):
                WriterLease(objects)

    def test_one_that_is_renewed_lasts(
        self, objects: Objects, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(writer_lease, "SECONDS", 2.0)
        with WriterLease(objects) as lease:
            time.sleep(2.5)
            lease.check()
            with pytest.raises(StoreBusyError):
                WriterLease(objects)

    def test_what_another_program_wrote_holds_nobody_up(self, objects: Objects) -> None:
        objects.write("writers/000000000003.json", [b"no JSON"])
        with WriterLease(objects):
            pass


class TestReaders:
    def test_a_version_is_noted_while_it_is_read(self, objects: Objects) -> None:
        note = ReaderNote(objects)
        assert noted(objects) == (set(), [])
        note.set(3)
        assert noted(objects) == ({3}, [])
        note.set(4)
        assert noted(objects) == ({4}, [])
        note.close()
        assert noted(objects) == (set(), [])

    def test_a_note_that_is_not_renewed_counts_no_more(
        self, objects: Objects, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        note = ReaderNote(objects)
        note.set(3)
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + reader_note.SECONDS + 1)
        numbers, old = noted(objects)
        assert numbers == set()
        assert len(old) == 1
        note.close()
