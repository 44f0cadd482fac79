"""A system that fails at any call of a write, a read, a deletion: named errors, nothing lost."""

from __future__ import annotations

import errno
import gc
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count
from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest

from fusionrag_integrations.errors import KVUnreadableError, StoreError
from fusionrag_integrations.store.kv.local import LocalKVFiles
from fusionrag_integrations.store.kv.record_files import RecordFiles
from fusionrag_integrations.store.kv.verify import verify
from tests.records.writer import KEY, LARGE, OTHER, SIGNATURE, version_of, write

CALLS = ("open", "write", "fsync", "close", "mkdir", "replace", "rename", "unlink")
CALLS += ("preadv", "pread", "read", "fstat", "stat", "lstat", "listdir", "scandir")
ERRORS = ("ENOSPC", "EIO", "EMFILE", "EACCES")


ErrorOf = Callable[[], BaseException]


def disk_error(name: str) -> OSError:
    number = getattr(errno, name)
    return OSError(number, os.strerror(number))


@pytest.fixture(params=ERRORS)
def error(request: pytest.FixtureRequest) -> ErrorOf:
    """Makes the system's error that the calls fail with."""
    return partial(disk_error, request.param)


def failing(patch: pytest.MonkeyPatch, number: int, error: BaseException) -> list[str]:
    """Let the number-th call of `os` fail; returns a list that the calls' names come to."""
    made: list[str] = []

    def wrapped(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            made.append(name)
            if len(made) == number:
                if name == "close":  # on Linux it has closed the descriptor even so
                    real(*arguments)
                raise error
            return real(*arguments, **options)

        return call

    for name in CALLS:
        patch.setattr(os, name, wrapped(name, getattr(os, name)))
    return made


def each_call(
    action: Callable[[], object], error: ErrorOf
) -> Iterator[tuple[str, BaseException | None]]:
    """Act with the first call failing, then with the second one, and so on to the last.

    Yields the name of the call that failed and what was raised then.
    """
    for number in count(1):
        raised: BaseException | None = None
        with pytest.MonkeyPatch.context() as patch:
            made = failing(patch, number, error())
            try:
                action()
            except BaseException as caught:  # noqa: BLE001 whoever asked looks at it
                raised = caught
        if len(made) < number:
            assert raised is None
            return
        yield made[number - 1], raised


@contextmanager
def no_leaks() -> Iterator[None]:
    """See that the same descriptors are open before and after."""
    while gc.collect():  # or what other tests have left would be closed meanwhile
        pass
    before = descriptors()
    yield
    assert descriptors() == before


def descriptors() -> list[str]:
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the listing's own
            found.append(f"{entry.name} {entry.readlink()}")
    return sorted(found)


def drafts(directory: Path) -> list[Path]:
    return list((directory / "tmp").glob("*"))


def test_a_write_that_fails_at_any_call_leaves_the_old_record_whole(files, directory, error):
    write(files)
    write(files, OTHER)
    failed = set()
    with no_leaks():
        for call, raised in each_call(lambda: write(files, KEY, 2), error):
            failed.add(call)
            assert type(raised) in (StoreError, type(None)), call
            assert version_of(files) in ((1, 2) if raised else (2,)), call
            assert version_of(files, OTHER) == 1
            assert drafts(directory) == [] or call == "unlink"
            files.files.sweep()
            write(files)
    assert failed >= {"open", "write", "fsync", "close", "replace", "unlink"}


def test_a_first_write_that_fails_at_any_call_leaves_no_record_or_all_of_it(
    files, directory, error
):
    failed = set()
    with no_leaks():
        for call, raised in each_call(lambda: write(files), error):
            failed.add(call)
            assert type(raised) in (StoreError, type(None)), call
            assert version_of(files) in ((None, 1) if raised else (1,)), call
            assert drafts(directory) == [] or call == "unlink"
            write(files, KEY, 2)
            assert version_of(files) == 2
            rmtree(directory)
    assert failed >= {"mkdir", "open", "write", "fsync", "close", "replace", "unlink"}


def test_an_interrupt_at_any_call_of_a_write_leaves_no_draft(files, directory):
    write(files)
    with no_leaks():
        for call, raised in each_call(lambda: write(files, KEY, 2), KeyboardInterrupt):
            assert type(raised) is KeyboardInterrupt
            assert version_of(files) in (1, 2), call
            assert drafts(directory) == [] or call == "unlink"
            files.files.sweep()


def test_a_read_that_fails_at_any_call_is_unreadable_and_works_afterwards(files, error):
    write(files, shape=LARGE)
    failed = set()
    with no_leaks():
        for call, raised in each_call(lambda: version_of(files), error):
            failed.add(call)
            assert type(raised) in (KVUnreadableError, type(None)), (call, raised)
            if raised:
                assert KEY in str(raised)
            assert raised or call not in ("open", "fstat", "preadv")
            assert version_of(files) == 1
    assert failed >= {"open", "fstat", "preadv", "close"}


def test_an_interrupt_at_any_call_of_a_read_leaves_nothing_open(files):
    write(files)
    with no_leaks():
        for call, raised in each_call(lambda: version_of(files), KeyboardInterrupt):
            assert type(raised) is KeyboardInterrupt, call
            assert version_of(files) == 1


def test_damage_leaves_nothing_open(files, directory):
    write(files)
    (path,) = (directory / KEY[:2]).iterdir()
    content = path.read_bytes()
    with no_leaks():
        for damaged in (b"", content[:9], content[:-1], content[:-1] + b"x", content + b"x"):
            path.write_bytes(damaged)
            assert len(list(verify(files.files, SIGNATURE))) == 1
            assert len(list(verify(LocalKVFiles(directory), "model-b"))) == 1


def test_a_deletion_that_fails_at_any_call_says_so_and_breaks_nothing(files, error):
    write(files)
    write(files, OTHER)
    failed = set()
    with no_leaks():
        for call, raised in each_call(lambda: files.delete(KEY), error):
            failed.add(call)
            assert type(raised) in (StoreError, type(None)), (call, raised)
            assert version_of(files) in ((1, None) if raised else (None,)), call
            assert version_of(files, OTHER) == 1
            write(files)
    assert failed >= {"unlink", "open", "fsync", "close"}


def test_whatever_else_is_asked_while_a_call_fails_has_a_named_error(files, error):
    write(files)
    write(files, OTHER)
    questions: list[Callable[[], object]] = [
        lambda: KEY in set(files.keys()),
        lambda: list(files.keys()) == [KEY, OTHER],
        lambda: files.size_bytes() > 0,
        lambda: len(files.files.paths()) == 2,
        lambda: list(verify(files.files, SIGNATURE)) == [],
    ]
    with no_leaks():
        for number, asked in enumerate(questions):
            for call, raised in each_call(asked, error):
                assert raised is None or isinstance(raised, StoreError), (number, call, raised)
                assert asked()


def test_verify_reports_a_record_that_the_system_will_not_read(files, error):
    write(files)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "preadv", lambda *_: (_ for _ in ()).throw(error()))
        (problem,) = verify(files.files, SIGNATURE)
    assert type(problem.error) is KVUnreadableError


def test_opening_a_store_fails_at_no_call(files, directory, error):
    write(files)
    (directory / "tmp" / "draft").write_bytes(b"half a record")
    os.utime(directory / "tmp" / "draft", (0, 0))
    with no_leaks():
        for call, raised in each_call(
            lambda: RecordFiles(LocalKVFiles(directory), SIGNATURE), error
        ):
            assert raised is None, (call, raised)


def test_reads_and_writes_of_a_few_bytes_at_a_time_do_the_whole(files, monkeypatch):
    real_write, real_read = os.write, os.preadv
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, part: real_write(fd, part[:7]))
        write(files)
    assert version_of(files) == 1
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", lambda fd, parts, at: real_read(fd, [parts[0][:5]], at))
        assert version_of(files) == 1


@contextmanager
def limited(what: int, limit: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(what)
    resource.setrlimit(what, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(what, (soft, hard))


@pytest.mark.parametrize("limit", [0, 100, 5000])
def test_a_file_that_the_system_cuts_off_is_no_record(files, directory, limit):
    write(files, shape=LARGE)
    with no_leaks():
        with limited(resource.RLIMIT_FSIZE, limit), pytest.raises(StoreError, match="too large"):
            write(files, KEY, 2, shape=LARGE)
        assert version_of(files) == 1
        assert drafts(directory) == []


def test_a_process_that_may_open_no_more_files_damages_nothing(files):
    write(files)
    with no_leaks():
        with limited(resource.RLIMIT_NOFILE, 3):
            with pytest.raises(KVUnreadableError, match="open files"):
                version_of(files)
            with pytest.raises(StoreError, match="open files"):
                write(files, KEY, 2)
        assert version_of(files) == 1
