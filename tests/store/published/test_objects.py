"""What `store/objects/base.py` promises, of every implementation."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from uuid import uuid4

import pytest

from fusionrag_integrations.errors import InvalidInputError, StoreError, StoreUnreachableError
from fusionrag_integrations.store.objects import fsspec_objects
from fusionrag_integrations.store.objects.base import Objects
from fusionrag_integrations.store.objects.fsspec_objects import FsspecObjects
from fusionrag_integrations.store.objects.opening import is_url, open_objects

pytestmark = pytest.mark.contract


def test_what_is_written_is_read(objects: Objects) -> None:
    content = os.urandom(100_000)
    objects.write("kv/ab/one", [content[:7], memoryview(content)[7:]])
    assert objects.read("kv/ab/one") == content
    objects.write("kv/ab/one", [b"new"])
    assert objects.read("kv/ab/one") == b"new"


def test_ranges_are_read_as_far_as_there_is_anything(objects: Objects) -> None:
    objects.write("one", [b"0123456789"])
    assert objects.read_ranges("one", [range(4)]) == [b"0123"]
    assert objects.read_ranges("one", [range(100)]) == [b"0123456789"]
    assert objects.read_ranges("one", [range(1, 3), range(8, 10), range(5, 6)]) == [
        b"12",
        b"89",
        b"5",
    ]


def test_what_is_not_there_is_missing(objects: Objects) -> None:
    for call in (lambda: objects.read("a/b"), lambda: objects.read_ranges("a/b", [range(3)])):
        with pytest.raises(FileNotFoundError):
            call()
    objects.delete(["a/b"])
    assert list(objects.entries("a")) == []
    objects.write("a/b/c", [b"x"])
    assert objects.existing(["a/b", "a/b/c", "a"]) == {"a/b/c"}  # a folder is no object
    assert objects.existing(["kv/41/416", "404"]) == set()  # whatever its name looks like


def test_entries_say_name_size_and_time(objects: Objects) -> None:
    before = time.time()
    for name in ("a/x", "a/b/y", "other/z"):
        objects.write(name, [name.encode()])
    found = sorted(objects.entries("a"))
    assert [(entry.name, entry.nbytes) for entry in found] == [("a/b/y", 5), ("a/x", 3)]
    assert all(before - 2 <= entry.modified <= time.time() + 2 for entry in found)
    objects.delete(["a/x", "never/was"])
    assert objects.existing(["a/x", "a/b/y"]) == {"a/b/y"}


def test_many_of_a_folder_are_found_as_a_few_are(
    objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fsspec_objects, "LISTED", 3)
    there = {"kv/ab/a", "kv/ab/b", "kv/cd/c", "kv/cd/e/f"}
    for name in there:
        objects.write(name, [b"x"])
    asked = [*there, "kv/ab/no", "kv/cd/no", "kv/cd/e", "kv/no/a", "kv/no/b", "kv/no/c", "none"]
    assert objects.existing(asked) == there


def test_a_folder_that_comes_into_being_while_it_is_listed_has_no_objects_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    objects = FsspecObjects("memory://" + uuid4().hex)
    listed = {f"{objects.url}/a": {"type": "directory", "size": 0, "name": "a"}}
    monkeypatch.setattr(type(objects._fs), "find", lambda *given, **how: listed)
    assert list(objects.entries("a")) == []
    objects.close()


def test_of_several_that_create_a_name_one_does(objects: Objects) -> None:
    for turn in range(10):
        ready = Barrier(4)

        def create(who: int, name: str = f"turn/{turn}", ready: Barrier = ready) -> bool:
            ready.wait()
            return objects.create(name, b"by %d" % who)

        with ThreadPoolExecutor(4) as threads:
            created = list(threads.map(create, range(4)))
        assert sum(created) == 1
        assert objects.read(f"turn/{turn}") == b"by %d" % created.index(True)


def test_an_attempt_whose_reply_was_lost_is_told_apart_from_another_s(objects: Objects) -> None:
    assert objects.create("one", b"mine")
    assert objects.create("one", b"mine")
    assert not objects.create("one", b"yours")
    assert objects.read("one") == b"mine"


def test_what_creates_exclusively_passes_the_trial(objects: Objects) -> None:
    objects.check_exclusive()
    assert list(objects.entries("tries")) == []


def test_what_replaces_instead_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    objects = FsspecObjects("memory://trial")

    def create(name: str, content: bytes) -> bool:
        objects.write(name, [content])
        return True

    monkeypatch.setattr(objects, "create", create)
    with pytest.raises(StoreError, match="two writers could destroy each other's work"):
        objects.check_exclusive()


def test_a_storage_that_is_away_for_a_moment_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fusionrag_integrations.store.objects.fsspec_objects._FIRST_PAUSE", 0.001)
    objects = FsspecObjects("memory://away")
    failures = [ConnectionError("refused"), TimeoutError("late")]
    pipe_file = objects._fs.pipe_file

    def failing(path: str, content: bytes, **given: object) -> None:
        if failures:
            raise failures.pop()
        pipe_file(path, content, **given)

    monkeypatch.setattr(objects._fs, "pipe_file", failing)
    objects.write("one", [b"x"])
    assert objects.read("one") == b"x"
    assert not failures


def test_a_storage_that_refuses_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    objects = FsspecObjects("memory://refuses")
    asked: list[str] = []

    def refuse(path: str, content: bytes, **given: object) -> None:
        asked.append(path)
        raise PermissionError("read-only key")

    monkeypatch.setattr(objects._fs, "pipe_file", refuse)
    with pytest.raises(StoreError, match=r"PermissionError: read-only key; object one"):
        objects.write("one", [b"x"])
    assert len(asked) == 1


@pytest.mark.parametrize("text", ["s3://b/p", "memory://x", "file:///tmp/x", "gcs://b"])
def test_urls_are_told_from_paths(text: str) -> None:
    assert is_url(text)
    assert not is_url(text.replace("://", "/"))


@pytest.mark.parametrize("text", ["s3:/bucket/store", "file:/tmp/store", "S3:/b"])
def test_a_stroke_that_is_missing_is_told_of(text: str) -> None:
    assert is_url(text)
    with pytest.raises(InvalidInputError, match="two strokes follow the protocol"):
        open_objects(text)


def test_protocols_may_be_in_capitals(tmp_path: Path) -> None:
    open_objects(f"FILE://{tmp_path}").write("one", [b"x"])
    assert (tmp_path / "one").read_bytes() == b"x"
    open_objects("Memory://Capitals").write("one", [b"x"])
    assert open_objects("memory://Capitals").read("one") == b"x"


def test_what_cannot_be_written_for_want_of_a_place_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    objects = FsspecObjects("memory://lacking")

    def refuse(path: str, content: bytes, **given: object) -> None:
        raise FileNotFoundError("The specified bucket does not exist")

    monkeypatch.setattr(objects._fs, "pipe_file", refuse)
    for place in (objects, open_objects("file:///proc/nosuch")):
        with pytest.raises(StoreUnreachableError, match="can't be used"):
            place.write("one", [b"x"])
        with pytest.raises(StoreUnreachableError, match="can't be used"):
            place.create("one", b"x")


def test_a_url_that_nothing_can_open_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="nosuch"):
        open_objects("nosuch://bucket/store")
