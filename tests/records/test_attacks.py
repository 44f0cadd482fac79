"""Files that somebody else made: altered, cut, swapped, huge, linked, no files at all.

Each gives a named error, never a wrong record, and nothing in them is run or followed.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import resource
import signal
import stat
import struct
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from fusionrag_integrations.errors import (
    InvalidInputError,
    KVCorruptError,
    KVForeignError,
    StoreError,
)
from fusionrag_integrations.store.kv.local import LocalKVFiles
from fusionrag_integrations.store.kv.record_files import RecordFiles
from fusionrag_integrations.store.kv.record_format import (
    MAX_HEADER_BYTES,
    MAX_RECORD_BYTES,
    header_bytes,
)
from fusionrag_integrations.store.kv.verify import verify
from tests.records.by_hand import build, tiny_parts
from tests.records.writer import (
    FAR,
    KEY,
    OTHER,
    SIGNATURE,
    data_of,
    file_of,
    header_of,
    version_of,
    write,
)

NAMED = (KVCorruptError, KVForeignError)
TINY = (1, 1, 2, 1)


@pytest.fixture
def path(files: RecordFiles, directory: Path) -> Path:
    """The file of a small whole record."""
    write(files, shape=TINY)
    return file_of(directory)


@pytest.fixture(autouse=True)
def impatience() -> Iterator[None]:
    """A test that hangs fails."""

    def fail(*_: object) -> None:
        raise AssertionError("this hangs")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@contextmanager
def cheap() -> Iterator[None]:
    """See that neither much memory nor much time is taken."""
    started = time.monotonic()
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + (1 << 30), hard))  # spares the machine
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 32 * MAX_HEADER_BYTES
    finally:
        tracemalloc.stop()
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert time.monotonic() - started < 5.0


def refused(files: RecordFiles, path: Path) -> None:
    """See that the file is corrupt, for a reader and for `verify`, at little cost."""
    with cheap():
        with pytest.raises(KVCorruptError, match=KEY):
            version_of(files)
        (problem,) = verify(files.files, SIGNATURE)
    assert problem.path == path
    assert type(problem.error) is KVCorruptError


# Damage


def test_a_changed_byte_of_the_header_never_gives_a_record(files, path):
    content = path.read_bytes()
    with path.open("r+b", buffering=0) as file:
        for position in range(len(content) - header_of(shape=TINY).data_bytes):
            byte = content[position]
            for other in {byte ^ 0x01, byte ^ 0x20, byte ^ 0x80, 0x00, 0x0A, 0x20} - {byte}:
                os.pwrite(file.fileno(), bytes([other]), position)
                with pytest.raises(NAMED, match=KEY):
                    version_of(files)
            os.pwrite(file.fileno(), bytes([byte]), position)
    assert version_of(files) == 1


@pytest.mark.parametrize("kv_format", ["float32", "int8", "int4"])
def test_a_changed_byte_of_the_data_is_corrupt(files, directory, kv_format):
    write(files, shape=(3, 2, 20, 8), kv_format=kv_format)
    content = file_of(directory).read_bytes()
    start = len(content) - header_of(shape=(3, 2, 20, 8), kv_format=kv_format).data_bytes
    chosen = random.Random(0).sample(range(start, len(content)), 300)
    with file_of(directory).open("r+b", buffering=0) as file:
        for position in [start, len(content) - 1, *chosen]:
            byte = content[position]
            for other in (byte ^ 0x01, byte ^ 0x80):
                os.pwrite(file.fileno(), bytes([other]), position)
                with pytest.raises(KVCorruptError, match=KEY):
                    version_of(files)
            os.pwrite(file.fileno(), bytes([byte]), position)
    assert version_of(files) == 1


def test_every_truncation_is_corrupt(files, path):
    for length in reversed(range(path.stat().st_size)):
        os.truncate(path, length)
        with pytest.raises(KVCorruptError, match=KEY):
            version_of(files)


@pytest.mark.parametrize("more", [b"\0", b" ", b"}", b"\0" * 8, b"x" * (1 << 20)])
def test_appended_bytes_are_corrupt(files, path, more):
    path.write_bytes(path.read_bytes() + more)
    refused(files, path)


def test_a_record_twice_in_a_file_is_corrupt(files, path):
    path.write_bytes(path.read_bytes() * 2)
    refused(files, path)


@pytest.mark.parametrize("other", [OTHER, FAR])
def test_two_whole_files_that_are_swapped_are_foreign(files, directory, other):
    write(files)
    write(files, other)
    between = directory / "between"
    file_of(directory).rename(between)
    file_of(directory, other).rename(file_of(directory))
    between.rename(file_of(directory, other))
    for key, found in ((KEY, other), (other, KEY)):
        with pytest.raises(KVForeignError, match=f"{key}.*{found}"):
            version_of(files, key)


def test_the_header_of_one_record_with_the_data_of_another_is_corrupt(files, path):
    old = path.read_bytes()
    write(files, KEY, 2, shape=TINY)
    new = path.read_bytes()
    data = header_of(shape=TINY).data_bytes
    path.write_bytes(new[:-data] + old[-data:])
    refused(files, path)


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\xff" * 400,
        b"\0" * 8,
        b"PK\3\4" + b"\0" * 400,
        struct.pack("<Q", 8) + b"[1,2,3] ",
        struct.pack("<Q", 8) + b"12345678",
        struct.pack("<Q", 40) + b'{"__metadata__":{}}'.ljust(40),
        struct.pack("<Q", 40) + b'{"__metadata__":[]}'.ljust(40),
        struct.pack("<Q", 40) + b'{"__metadata__":"checksum"}'.ljust(40),
        struct.pack("<Q", 40) + b"\xf0\x28\x8c\x28".ljust(40),
        struct.pack("<Q", 5_000) + b"9" * 5_000,
    ],
)
def test_garbage_is_corrupt(files, path, garbage):
    path.write_bytes(garbage)
    refused(files, path)


# Headers with a right checksum that no writer makes


def entry(**changed: str) -> Callable[[dict], None]:
    return lambda listed: listed["__metadata__"].update(changed)


def tensor(name: str, **changed: object) -> Callable[[dict], None]:
    return lambda listed: listed[name].update(changed)


@pytest.mark.parametrize(
    "change",
    [
        tensor("keys", dtype="I32"),
        tensor("keys", shape=[2, 1]),
        tensor("keys", shape=[1, 1, 1, 2]),
        tensor("keys", shape=None),
        tensor("keys", shape=[True, 1, 2, 1]),
        tensor("keys", shape=[1.0, 1, 2, 1]),
        tensor("values", data_offsets=[8, 16]),
        tensor("token_ids", data_offsets=[-8, 0]),
        lambda listed: listed.pop("values"),
        lambda listed: listed.pop("token_ids"),
        lambda listed: listed.update(more=listed["keys"]),
        lambda listed: listed.update(keys=[]),
        lambda listed: listed["__metadata__"].pop("neighbours"),
        lambda listed: listed["__metadata__"].pop("format_version"),
        lambda listed: listed["__metadata__"].update(signature=1),
        lambda listed: listed["__metadata__"].update(digests=["x", "y"]),
        entry(more="x"),
        entry(kind="other"),
        entry(kv_format="int2"),
        entry(kv_format="bfloat16"),
        entry(half="F32"),
        entry(format="something"),
        entry(digests=""),
        entry(digests="0"),
        entry(digests="0,0,0"),
        entry(digests="0,0"),
        entry(shape=""),
        entry(shape="1,1,2"),
        entry(shape="1,1,2,1,1"),
        entry(shape="1,1,2,2"),
        entry(shape="1,1,1,2"),
        entry(shape="1,1, 2,1"),
        entry(shape="1,1,2,1_0"),
        entry(shape="1,1,+2,1"),
        entry(shape="1,1,٢,1"),
        entry(shape="-1,-1,2,1"),
        entry(shape="1,1,0,1"),
        entry(shape="0,1,2,1"),
        entry(shape="1,1,2,1e0"),
        entry(shape="1,1,nan,1"),
        entry(neighbours="0a,"),
        entry(neighbours="0a,../0b"),
        entry(neighbours="0A"),
    ],
)
def test_a_header_of_another_form_is_corrupt_even_with_a_right_checksum(files, path, change):
    listed, data = tiny_parts()
    change(listed)
    path.write_bytes(build(listed, data))
    refused(files, path)


def test_the_header_made_by_hand_is_right_where_nothing_is_changed(files, path):
    path.write_bytes(build(*tiny_parts()))
    assert list(verify(files.files, SIGNATURE)) == []


def test_four_bits_of_half_a_pair_are_corrupt_even_with_a_right_checksum(files, path):
    # Two channels share a byte, so no writer makes heads of an odd size.
    header = replace(header_of(shape=(1, 1, 8, 3), kv_format="int4"), digests=("0" * 16,) * 2)
    path.write_bytes(header_bytes(header) + bytes(header.data_bytes))
    refused(files, path)
    with pytest.raises(KVCorruptError, match="int4"), files.open(KEY):
        pass


@pytest.mark.parametrize("separators", [(", ", ": "), (",", ": ")])
def test_another_form_of_the_same_header_is_corrupt(files, path, separators):
    listed, data = tiny_parts()
    build(listed, data)  # fills in the checksum
    text = json.dumps(listed, sort_keys=True, separators=separators).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    refused(files, path)


@pytest.mark.parametrize("name", ["utf-16", "utf-16-le", "utf-32", "utf-8-sig"])
def test_a_header_in_another_encoding_is_corrupt(files, path, name):
    listed, data = tiny_parts()
    build(listed, data)
    text = json.dumps(listed, sort_keys=True, separators=(",", ":")).encode(name)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    refused(files, path)


def test_a_name_twice_in_a_header_is_corrupt(files, path):
    listed, data = tiny_parts()
    build(listed, data)
    text = json.dumps(listed, sort_keys=True, separators=(",", ":")).encode()
    text = text[:-1] + b"," + text[1:]
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    refused(files, path)


def test_what_a_foreign_header_says_is_printable(files, path):
    # Signatures may be any text: this one clears the terminal, and has no UTF-8.
    listed, data = tiny_parts()
    listed["__metadata__"]["signature"] = "\x1b[2J\ud800"
    path.write_bytes(build(listed, data))
    with pytest.raises(KVForeignError) as raised:
        version_of(files)
    assert str(raised.value).isprintable()


# Size bombs


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 2**32, MAX_HEADER_BYTES + 1, 10**4])
def test_a_header_that_claims_to_be_longer_than_may_be_is_refused(files, path, length):
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
    refused(files, path)
    os.truncate(path, 2 * MAX_HEADER_BYTES)
    refused(files, path)


def test_a_header_beyond_the_bound_is_refused_even_with_a_right_checksum(files, path):
    listed, data = tiny_parts()
    listed["__metadata__"]["signature"] = "x" * MAX_HEADER_BYTES
    path.write_bytes(build(listed, data))
    refused(files, path)


SHAPES = [
    "1,1,1099511627776,1048576",
    "1,1099511627776,1099511627776,1099511627776",
    "99999999999999999999,1,2,1",
    f"1,{'9' * 300},2,1",
    f"1,{'9' * 3000},{'9' * 3000},1",
    f"1,{'9' * 5000},1,1",
    ",".join(["9" * 4000] * 4),
    "1," * 100_000 + "1",
]


@pytest.mark.parametrize("shape", SHAPES, ids=range(len(SHAPES)))
def test_a_shape_that_claims_to_be_huge_is_refused_even_with_a_right_checksum(files, path, shape):
    listed, data = tiny_parts()
    listed["__metadata__"]["shape"] = shape
    path.write_bytes(build(listed, data))
    refused(files, path)


@pytest.mark.parametrize(
    "shape", [(1, 1, 1 << 40, 1 << 20), (1, 1 << 60, 1, 1), (1, 8, 1 << 20, 4)]
)
@pytest.mark.parametrize("kv_format", ["float32", "int4"])
def test_a_whole_header_that_claims_more_than_the_file_has_is_refused(
    files, path, shape, kv_format
):
    header = replace(header_of(shape=shape, kv_format=kv_format), digests=("0" * 16,) * 2)
    path.write_bytes(header_bytes(header) + bytes(64))
    refused(files, path)


@pytest.mark.parametrize("tokens", [1 << 20, 1 << 26])
def test_a_huge_file_without_content_is_refused_even_where_its_header_matches(files, path, tokens):
    header = replace(header_of(shape=(1, 8, tokens, 256)), digests=("0" * 16,) * 2)
    assert header.file_bytes > MAX_RECORD_BYTES
    path.write_bytes(header_bytes(header))
    try:
        os.truncate(path, header.file_bytes)
    except OSError as error:
        pytest.skip(f"the file system has no files of this size: {error}")
    refused(files, path)
    assert files.size_bytes() == header.file_bytes
    files.delete(KEY)
    assert not path.exists()


def nested(depth: int) -> bytes:
    return b'{"__metadata__":{"checksum":"x"},"a":' + b"[" * depth + b"]" * depth + b"}"


def test_a_deeply_nested_header_is_refused(files, path):
    # Depths about the recursion limit: reading may succeed where writing it again does not.
    limit = sys.getrecursionlimit()
    for depth in [*range(limit - 200, limit + 10), 10 * limit, 100 * limit]:
        text = nested(depth)
        path.write_bytes(struct.pack("<Q", len(text)) + text)
        with pytest.raises(KVCorruptError, match=KEY):
            version_of(files)


@pytest.mark.parametrize("piece", [b"[],", b"{},", b'"",', b"1e999,", b"-0.1e-300,", b"NaN,"])
def test_a_header_of_many_small_things_is_refused(files, path, piece):
    listed = b'{"__metadata__":{"checksum":"x"},"a":['
    listed += piece * ((MAX_HEADER_BYTES - 100) // len(piece)) + b"0]}"
    path.write_bytes(struct.pack("<Q", len(listed)) + listed)
    with pytest.raises(KVCorruptError, match=KEY):
        version_of(files)


# Code


class Planted:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("protocol", [0, 2, pickle.HIGHEST_PROTOCOL])
def test_pickles_in_the_place_of_a_record_or_in_it_are_never_run(files, path, tmp_path, protocol):
    marker = tmp_path / "run"
    planted = pickle.dumps(Planted(marker), protocol)
    pickle.loads(planted)  # noqa: S301 to see that it would be noticed
    assert marker.exists()
    marker.rmdir()
    listed, data = tiny_parts()
    contents = [planted, struct.pack("<Q", len(planted)) + planted, build(listed, planted)]
    for name in ("signature", "neighbours", "kind", "kv_format", "shape", "digests", "half"):
        listed, data = tiny_parts()
        listed["__metadata__"][name] = planted.decode("latin-1")
        contents.append(build(listed, data))
    listed, data = tiny_parts()
    listed["__metadata__"]["more"] = planted.decode("latin-1")
    listed[planted.decode("latin-1")] = listed["keys"]
    contents.append(build(listed, data))
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(NAMED, match=KEY):
            version_of(files)
        assert [problem.path for problem in verify(files.files, SIGNATURE)] == [path]
        assert list(RecordFiles(LocalKVFiles(path.parents[1]), SIGNATURE).keys()) == [KEY]
    assert not marker.exists()


# Names


BAD_KEYS = [
    *("", "a", "AB", "abcg", "ab\n", "a" * 129, "ab cd", "ab\0", "аb", "٠٠", "..", "../ab"),
    *("ab/cd", "ab/../../x", "../../etc/passwd", "/etc/passwd", "//ab", "abcd/", "ab\\cd", "~"),
    *("tmp", "ab.safetensors", "%2e%2e", "ab*"),
]


@pytest.mark.parametrize("key", BAD_KEYS)
def test_only_hex_keys_name_files(files, tmp_path, key):
    def opened(key: str) -> None:
        with files.open(key):
            pass

    for use in (opened, files.delete, files.files.path_of, lambda key: write(files, key)):
        with pytest.raises(InvalidInputError, match="hex"):
            use(key)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("neighbour", ["", "0a,0b", "../ab", "AB", "a"])
def test_only_keys_are_neighbours(files, tmp_path, neighbour):
    header = replace(header_of(), neighbours=("0a", neighbour))
    with pytest.raises(InvalidInputError, match="is no key"):
        files.write(header, [memoryview(data_of(header))])
    assert list(tmp_path.iterdir()) == []


# Links


def everything(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A store that isn't ours, with the same record and old drafts."""
    files = RecordFiles(LocalKVFiles(tmp_path / "elsewhere"), SIGNATURE)
    write(files, KEY, 7)
    for name in ("draft", "notes.txt"):
        draft = tmp_path / "elsewhere" / "tmp" / name
        draft.write_bytes(b"not ours")
        os.utime(draft, (0, 0))
    return tmp_path / "elsewhere"


def test_a_link_in_the_place_of_a_record_is_not_followed(files, directory, elsewhere):
    before = everything(elsewhere)
    path = file_of(directory)
    path.parent.mkdir(parents=True)
    path.symlink_to(file_of(elsewhere))
    with pytest.raises(KVCorruptError, match=KEY):
        version_of(files)
    assert KEY not in set(files.keys())
    assert list(files.entries()) == []
    assert [problem.path for problem in verify(files.files, SIGNATURE)] == [path]
    files.delete(KEY)
    assert not path.is_symlink()
    path.symlink_to(file_of(elsewhere))
    write(files, KEY, 2)
    assert not path.is_symlink()
    assert version_of(files) == 2
    assert everything(elsewhere) == before


def test_a_link_to_nothing_makes_no_file_there(files, directory, tmp_path):
    path = file_of(directory)
    path.parent.mkdir(parents=True)
    path.symlink_to(tmp_path / "nothing")
    with pytest.raises(KVCorruptError):
        version_of(files)
    write(files)
    assert version_of(files) == 1
    assert not (tmp_path / "nothing").exists()


def test_a_link_in_the_place_of_a_shard_is_not_followed(files, directory, elsewhere):
    before = everything(elsewhere)
    write(files, FAR)
    shard = directory / KEY[:2]
    shard.symlink_to(elsewhere / KEY[:2])
    with pytest.raises(KVCorruptError, match=KEY):
        version_of(files)
    for key in (KEY, OTHER):
        with pytest.raises(StoreError, match="Can't write"):
            write(files, key)
    assert list(files.keys()) == [FAR]
    assert [problem.path for problem in verify(files.files, SIGNATURE)] == [shard]
    assert everything(elsewhere) == before


def test_nothing_is_deleted_through_a_link_in_the_place_of_a_shard(files, directory, elsewhere):
    before = everything(elsewhere)
    directory.mkdir()
    (directory / KEY[:2]).symlink_to(elsewhere / KEY[:2])
    with pytest.raises(StoreError, match="Can't delete"):
        files.delete(KEY)
    assert everything(elsewhere) == before


def test_nothing_is_there_through_a_link_in_the_place_of_a_shard(files, directory, elsewhere):
    directory.mkdir()
    (directory / KEY[:2]).symlink_to(elsewhere / KEY[:2])
    assert KEY not in set(files.keys())


def test_nothing_is_written_through_a_link_in_the_place_of_the_drafts(files, directory, elsewhere):
    before = everything(elsewhere)
    directory.mkdir()
    (directory / "tmp").symlink_to(elsewhere / "tmp")
    with pytest.raises(StoreError, match="Can't write"):
        write(files)
    assert version_of(files) is None
    assert everything(elsewhere) == before


def test_nothing_is_swept_through_a_link_in_the_place_of_the_drafts(directory, elsewhere):
    before = everything(elsewhere)
    directory.mkdir()
    (directory / "tmp").symlink_to(elsewhere / "tmp")
    files = RecordFiles(LocalKVFiles(directory), SIGNATURE)
    assert files.files.sweep() == []
    assert everything(elsewhere) == before


def test_a_link_among_the_drafts_goes_and_its_target_stays(files, directory, elsewhere):
    before = everything(elsewhere)
    write(files)
    (directory / "tmp" / "draft").symlink_to(file_of(elsewhere))
    (directory / "tmp" / "more").symlink_to(elsewhere / "tmp")
    assert len(files.files.sweep()) == 2
    assert everything(elsewhere) == before


def test_a_record_with_a_second_name_is_replaced_under_the_first_only(files, directory, tmp_path):
    write(files)
    (tmp_path / "second").hardlink_to(file_of(directory))
    before = (tmp_path / "second").read_bytes()
    write(files, KEY, 2)
    assert (tmp_path / "second").read_bytes() == before


# What is no file


def pipe(path: Path) -> None:
    os.mkfifo(path)


def socket(path: Path) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o600)


@pytest.mark.parametrize("make", [pipe, socket, Path.mkdir])
def test_what_is_no_file_is_corrupt_and_keeps_nobody_waiting(files, directory, make):
    path = file_of(directory)
    path.parent.mkdir(parents=True)
    make(path)
    with pytest.raises(KVCorruptError, match="regular file"):
        version_of(files)
    assert KEY not in set(files.keys())
    assert list(files.entries()) == []
    assert [problem.path for problem in verify(files.files, SIGNATURE)] == [path]


@pytest.mark.parametrize("make", [pipe, socket])
def test_a_pipe_in_the_place_of_a_record_is_replaced_and_deleted(files, directory, make):
    path = file_of(directory)
    path.parent.mkdir(parents=True)
    make(path)
    files.delete(KEY)
    assert not path.exists()
    make(path)
    write(files)
    assert version_of(files) == 1


def test_a_directory_in_the_place_of_a_record_stays(files, directory):
    file_of(directory).mkdir(parents=True)
    with pytest.raises(StoreError, match="Can't write"):
        write(files)
    with pytest.raises(StoreError, match="Can't delete"):
        files.delete(KEY)
    assert file_of(directory).is_dir()
    assert list((directory / "tmp").iterdir()) == []


@pytest.mark.parametrize("make", [pipe, socket, Path.touch])
@pytest.mark.parametrize("name", [KEY[:2], "tmp"])
def test_no_directory_where_one_should_be_is_an_error(files, directory, make, name):
    directory.mkdir()
    make(directory / name)
    with pytest.raises(StoreError, match="Can't write"):
        write(files)
    assert [path.name for path in directory.iterdir() if path.name != "tmp"] in ([], [KEY[:2]])
    assert list(RecordFiles(LocalKVFiles(directory), SIGNATURE).keys()) == []
    if name == "tmp":
        assert version_of(files) is None
    else:
        with pytest.raises(KVCorruptError, match="regular file"):
            version_of(files)


def test_a_sweep_passes_over_what_it_cannot_remove(files, directory):
    write(files)
    (directory / "tmp" / "a").mkdir()
    (directory / "tmp" / "b").write_bytes(b"half a record")
    pipe(directory / "tmp" / "c")
    assert files.files.sweep() == [directory / "tmp" / "b", directory / "tmp" / "c"]


# Files that change while they are read


@pytest.mark.parametrize("kept", [0, 8, 100, 1000, -1000, -1])
def test_a_file_that_is_cut_while_it_is_read_is_corrupt(files, directory, kept):
    write(files, shape=(3, 2, 64, 16))
    size = file_of(directory).stat().st_size
    with files.open(KEY) as record:
        data = memoryview(bytearray(record.header.data_bytes))
        record.read_tokens(data)
        os.truncate(file_of(directory), kept % size)
        with pytest.raises(KVCorruptError, match=KEY):
            record.read_layers(data, record.header.layers)


def test_a_file_that_is_cut_is_corrupt_even_where_its_bytes_are_in_memory_already(files, directory):
    write(files)
    with files.open(KEY) as record:
        data = memoryview(bytearray(record.header.data_bytes))
        record.read_all(data)
        os.truncate(file_of(directory), file_of(directory).stat().st_size - 1)
        for read in (record.read_all, lambda data: record.read_layers(data, record.header.layers)):
            with pytest.raises(KVCorruptError, match=KEY):
                read(data)


@pytest.mark.parametrize("kept", [0, 8, 100])
def test_a_file_that_is_cut_before_its_header_is_read_is_corrupt(
    files, directory, kept, monkeypatch
):
    real = os.preadv

    def cut(*arguments):
        os.truncate(file_of(directory), kept)
        return real(*arguments)

    write(files)
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", cut)
        with pytest.raises(KVCorruptError, match=KEY):
            version_of(files)


def test_a_file_that_is_altered_while_it_is_read_is_corrupt(files, directory):
    write(files)
    with files.open(KEY) as record:
        data = memoryview(bytearray(record.header.data_bytes))
        record.read_tokens(data)
        with file_of(directory).open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(bytes([data_of(header_of())[-1] ^ 1]))
        with pytest.raises(KVCorruptError, match=KEY):
            record.read_layers(data, record.header.layers)


@pytest.mark.parametrize("change", [lambda f: write(f, KEY, 2), lambda f: f.delete(KEY)])
def test_a_record_that_goes_while_it_is_read_is_read_to_its_end(files, change):
    write(files)
    with files.open(KEY) as record:
        data = bytearray(record.header.data_bytes)
        change(files)
        record.read_all(memoryview(data))
    assert data == data_of(header_of())


# Permissions


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_files_and_directories_are_for_their_owner_alone(tmp_path, umask, monkeypatch):
    modes = set()
    real = os.write

    def watched(descriptor, content):
        modes.add(os.fstat(descriptor).st_mode & 0o777)
        return real(descriptor, content)

    before = os.umask(umask)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", watched)
            files = RecordFiles(LocalKVFiles(tmp_path / "new" / "kv"), SIGNATURE)
            for version in (1, 2):
                write(files, KEY, version)
    finally:
        os.umask(before)
    assert modes == {0o600}  # nobody can open a draft before it is for its owner alone
    for path in (tmp_path / "new").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
