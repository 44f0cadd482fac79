"""Records in a directory: read by layers, listed, verified, deleted, left alone."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import pytest

from fusionrag_integrations.errors import (
    InvalidInputError,
    KVCorruptError,
    KVForeignError,
    KVMissingError,
)
from fusionrag_integrations.store.kv.local import LocalKVFiles
from fusionrag_integrations.store.kv.record_files import RecordFile, RecordFiles
from fusionrag_integrations.store.kv.verify import verify
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

FORMATS = ("float32", "float16", "bfloat16", "int8", "int4")
DEEP, TINY = (4, 2, 9, 8), (1, 1, 2, 1)


def blank(record) -> memoryview:
    """A place for all data, in which no byte is right by chance."""
    wanted = data_of(record.header)
    return memoryview(bytearray(byte ^ 0xFF for byte in wanted))


# Reading


@pytest.mark.parametrize("kv_format", FORMATS)
@pytest.mark.parametrize("shape", [DEEP, (1, 1, 1, 2), (2, 1, 4, 6), (3, 2, 300, 64)])
def test_a_record_comes_back_byte_for_byte(files, kv_format, shape):
    write(files, shape=shape, kv_format=kv_format)
    with files.open(KEY) as record:
        data = blank(record)
        record.read_all(data)
        assert replace(record.header, digests=()) == header_of(shape=shape, kv_format=kv_format)
    assert data == data_of(record.header)


@pytest.mark.parametrize("kv_format", FORMATS)
def test_layers_in_any_order_are_what_reading_all_gives(files, kv_format):
    write(files, shape=DEEP, kv_format=kv_format)
    for order in permutations(range(4)):
        with files.open(KEY) as record:
            data = blank(record)
            for layer in order:
                record.read_layers(data, range(layer, layer + 1))
            record.read_tokens(data)
        assert data == data_of(record.header)


@pytest.mark.parametrize("kv_format", FORMATS)
@pytest.mark.parametrize(
    "groups", [[(0, 4)], [(0, 1), (1, 4)], [(2, 4), (0, 2)], [(0, 3), (1, 4)], [(0, 0), (0, 4)]]
)
def test_groups_of_layers_are_what_reading_all_gives(files, kv_format, groups):
    write(files, shape=DEEP, kv_format=kv_format)
    with files.open(KEY) as record:
        data = blank(record)
        record.read_tokens(data)
        for start, stop in groups:
            record.read_layers(data, range(start, stop))
    assert data == data_of(record.header)


@pytest.mark.parametrize("kv_format", FORMATS)
def test_a_piece_is_read_into_its_own_place_alone(files, kv_format):
    write(files, shape=DEEP, kv_format=kv_format)
    with files.open(KEY) as record:
        right, entries = data_of(record.header), record.header.entries
        tokens = entries.pop("token_ids")
        data, wanted = blank(record), blank(record)
        record.read_tokens(data)
        wanted[tokens.start : tokens.stop] = right[tokens.start : tokens.stop]
        assert data == wanted
        record.read_layers(data, range(1, 3))
        for place in (entry.of_layers(range(1, 3)) for entry in entries.values()):
            wanted[place] = right[place]
        assert data == wanted


@pytest.mark.parametrize("kv_format", FORMATS)
def test_damage_in_a_layer_is_found_when_this_layer_is_read_and_not_before(
    files, directory, kv_format
):
    write(files, shape=DEEP, kv_format=kv_format)
    content = file_of(directory).read_bytes()
    header = header_of(shape=DEEP, kv_format=kv_format)
    start = len(content) - header.data_bytes
    for name, entry in header.entries.items():
        if name != "token_ids":
            damaged = bytearray(content)
            damaged[start + entry.of_layers(range(2, 3)).start] ^= 0x10
            file_of(directory).write_bytes(damaged)
            with files.open(KEY) as record:
                data = blank(record)
                record.read_tokens(data)
                record.read_layers(data, range(2))
                record.read_layers(data, range(3, 4))
                with pytest.raises(KVCorruptError, match=KEY):
                    record.read_layers(data, range(2, 3))
                with pytest.raises(KVCorruptError, match=KEY):
                    record.read_layers(data, range(1, 4))
                with pytest.raises(KVCorruptError, match=KEY):
                    record.read_all(data)


def test_damage_in_the_token_ids_is_found_when_they_are_read_and_not_before(files, directory):
    write(files, shape=DEEP)
    content = bytearray(file_of(directory).read_bytes())
    content[-header_of(shape=DEEP).data_bytes] ^= 0x10
    file_of(directory).write_bytes(content)
    with files.open(KEY) as record:
        data = blank(record)
        record.read_layers(data, record.header.layers)
        with pytest.raises(KVCorruptError, match=KEY):
            record.read_tokens(data)
        with pytest.raises(KVCorruptError, match=KEY):
            record.read_all(data)


def test_layers_that_trade_places_are_corrupt(files, directory):
    write(files, shape=DEEP)
    content = bytearray(file_of(directory).read_bytes())
    start = len(content) - header_of(shape=DEEP).data_bytes
    entry = header_of(shape=DEEP).entries["keys"]
    first, second = (
        slice(start + part.start, start + part.stop)
        for part in (entry.of_layers(range(1)), entry.of_layers(range(1, 2)))
    )
    content[first], content[second] = content[second], content[first]
    file_of(directory).write_bytes(content)
    with pytest.raises(KVCorruptError, match=KEY):
        version_of(files)


def test_keys_and_values_that_trade_places_are_corrupt(files, directory):
    write(files, shape=DEEP)
    content = bytearray(file_of(directory).read_bytes())
    entry = header_of(shape=DEEP).entries["values"]
    size = entry.stop - entry.start
    content[-2 * size : -size], content[-size:] = content[-size:], content[-2 * size : -size]
    file_of(directory).write_bytes(content)
    with pytest.raises(KVCorruptError, match=KEY):
        version_of(files)


def test_a_header_longer_than_the_first_read_is_read(files):
    # One digest a layer: this header has some 34 KiB.
    write(files, shape=(2000, 1, 1, 1))
    assert version_of(files) == 1


# Opening again


def test_a_record_opened_again_reads_the_same(files):
    write(files, shape=DEEP)
    with files.open(KEY) as first:
        pass
    with files.open(KEY, known=first) as again:
        assert again.header == first.header
        data = blank(again)
        again.read_all(data)
    assert data == data_of(header_of(shape=DEEP))


@pytest.mark.parametrize("change", [{"version": 2}, {"shape": (4, 2, 9, 9)}, {"key": OTHER}])
def test_a_record_known_before_is_not_taken_for_another_one(files, change):
    write(files, shape=DEEP)
    with files.open(KEY) as first:
        pass
    new = {"shape": DEEP} | change
    write(files, **new)
    with files.open(change.get("key", KEY), known=first) as again:
        data = blank(again)
        again.read_all(data)
        assert replace(again.header, digests=()) == header_of(**new)


def test_damage_is_found_in_a_record_known_before(files, directory):
    write(files, shape=TINY)
    with files.open(KEY) as first:
        pass
    content = file_of(directory).read_bytes()
    for position in range(0, len(content), 7):
        altered = bytearray(content)
        altered[position] ^= 0x01
        for damaged in (altered, content[:position]):
            file_of(directory).write_bytes(damaged)
            with pytest.raises((KVCorruptError, KVForeignError), match=KEY):
                read_known(files, first)
    file_of(directory).write_bytes(content + b"x")
    with pytest.raises(KVCorruptError, match=KEY):
        read_known(files, first)


def read_known(files: RecordFiles, known: RecordFile) -> None:
    with files.open(KEY, known=known) as record:
        record.read_all(blank(record))


def test_a_record_known_before_is_foreign_to_another_signature_and_key(files, directory):
    write(files)
    write(files, OTHER)
    with files.open(KEY) as first:
        pass
    with pytest.raises(KVForeignError, match="model-b"):
        read_known(RecordFiles(LocalKVFiles(directory), "model-b"), first)
    with files.open(OTHER) as other:
        pass
    file_of(directory, OTHER).replace(file_of(directory))
    with pytest.raises(KVForeignError, match=OTHER):
        read_known(files, other)


# Foreign and missing


@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError])
def test_errors_of_who_reads_keep_their_own_names(files, tmp_path, error):
    """Only what the record's own file says is named after it."""
    write(files)
    with pytest.raises(error), files.open(KEY):
        raise error(tmp_path / "of something else")


def test_an_intact_record_of_another_signature_is_foreign(files, directory):
    write(files, signature="model-b")
    with pytest.raises(KVForeignError, match=rf"{KEY}.*model-b.*model-a"):
        version_of(files)
    assert version_of(RecordFiles(LocalKVFiles(directory), "model-b")) == 1


@pytest.mark.parametrize("signature", ["", "model", "model-a ", "Model-a"])
def test_a_signature_that_is_almost_the_same_is_another(files, signature):
    write(files, signature=signature)
    with pytest.raises(KVForeignError):
        version_of(files)


@pytest.mark.parametrize("other", [OTHER, FAR])
def test_an_intact_record_of_another_key_is_foreign(files, directory, other):
    write(files)
    write(files, other)
    file_of(directory).replace(file_of(directory, other))
    with pytest.raises(KVForeignError, match=rf"{other}.*{KEY}"):
        version_of(files, other)


def test_a_record_that_is_not_there_is_missing(files, directory):
    for key in (KEY, OTHER):
        assert key not in set(files.keys())
        with pytest.raises(KVMissingError, match=key), files.open(key):
            pass
    files.delete(KEY)
    assert list(files.keys()) == []
    assert files.size_bytes() == 0
    assert files.files.paths() == []
    assert list(verify(files.files, SIGNATURE)) == []
    assert not directory.exists()


# Writing


def test_a_write_replaces_and_returns_the_bytes_of_the_file(files, directory):
    for version, shape in ((1, DEEP), (2, (1, 1, 1, 1)), (3, DEEP)):
        nbytes = write(files, KEY, version, shape=shape)
        assert nbytes == file_of(directory).stat().st_size
        assert version_of(files) == version
    assert list((directory / "tmp").iterdir()) == []


def test_data_comes_in_as_many_parts_as_it_likes(files):
    header = header_of(shape=DEEP)
    data = memoryview(data_of(header))
    files.write(header, [data[at : at + 7] for at in range(0, len(data), 7)])
    assert version_of(files) == 1


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"x"])
def test_data_of_another_length_than_the_header_says_is_not_written(files, directory, change):
    header = header_of()
    with pytest.raises(InvalidInputError, match=f"{KEY}.*bytes"):
        files.write(header, [memoryview(change(data_of(header)))])
    assert not directory.exists()


def test_a_record_with_a_header_too_long_to_read_is_not_written(files, directory):
    header = replace(header_of(), neighbours=("0a" * 64,) * 8500)
    with pytest.raises(InvalidInputError, match=f"{KEY}.*header"):
        files.write(header, [memoryview(data_of(header))])
    assert not directory.exists()


def test_a_record_too_long_to_read_is_not_written(files, directory, monkeypatch):
    limit = header_of().file_bytes
    monkeypatch.setattr("fusionrag_integrations.store.kv.record_files.MAX_RECORD_BYTES", limit)
    write(files)
    assert version_of(files) == 1
    monkeypatch.setattr("fusionrag_integrations.store.kv.record_files.MAX_RECORD_BYTES", limit - 1)
    with pytest.raises(KVCorruptError, match="at most"):
        version_of(files)
    with pytest.raises(InvalidInputError, match="at most"):
        write(files, "abcdef02")
    assert "abcdef02" not in set(files.keys())


# Listing


def test_contains_delete_keys_and_size(files, directory):
    shapes = {"ff00": DEEP, KEY: (1, 1, 1, 1), OTHER: DEEP, "00": (1, 2, 3, 4)}
    for key, shape in shapes.items():
        write(files, key, shape=shape)
    sizes = {key: header_of(key, shape=shape).file_bytes for key, shape in shapes.items()}
    assert list(files.keys()) == sorted(shapes)
    assert files.size_bytes() == sum(sizes.values())
    assert {key: nbytes for key, nbytes, _ in files.entries()} == sizes
    assert files.files.paths() == sorted(file_of(directory, key) for key in shapes)
    assert all(key in set(files.keys()) for key in shapes)
    files.delete(KEY)
    files.delete(KEY)
    assert KEY not in set(files.keys())
    assert OTHER in set(files.keys())
    assert list(files.keys()) == ["00", OTHER, "ff00"]
    assert files.size_bytes() == sum(sizes.values()) - sizes[KEY]
    assert version_of(files, OTHER) == 1


def test_a_record_is_listed_with_the_time_it_was_written(files, directory):
    write(files)
    os.utime(file_of(directory), (5, 1234.5))
    ((key, _, written),) = files.entries()
    assert (key, written) == (KEY, 1234.5)
    before = time.time()
    write(files)
    ((_, _, written),) = files.entries()
    assert before - 1 < written < time.time() + 1


def test_a_record_deleted_while_they_are_listed_is_passed_over(files):
    for key in (KEY, OTHER, FAR):
        write(files, key)
    listed = files.keys()
    assert next(listed) == KEY
    files.delete(OTHER)
    assert list(listed) == [FAR]


def strangers(directory: Path) -> list[Path]:
    """Files that aren't records, in every place where one could lie."""
    return [
        directory / "README.txt",
        directory / f"{KEY}.safetensors",
        directory / "ab" / "notes.txt",
        directory / "ab" / "zz.safetensors",
        directory / "ab" / "AB.safetensors",
        directory / "ab" / f"{KEY}.safetensors.old",
        directory / "ab" / KEY,
        directory / "ab" / ".hidden",
        directory / "cd" / f"{KEY}.safetensors",
        directory / "ef",
    ]


def add_strangers(directory: Path) -> None:
    content = file_of(directory).read_bytes()
    for path in strangers(directory):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)


def test_keys_pass_over_strangers(files, directory):
    write(files)
    size = files.size_bytes()
    add_strangers(directory)
    file_of(directory, "abcd").mkdir()
    file_of(directory, "abce").symlink_to(file_of(directory))
    (directory / "other").mkdir()
    (directory / "ABAB").mkdir()
    assert list(files.keys()) == [KEY]
    assert files.size_bytes() == size
    assert version_of(files) == 1


def test_drafts_are_neither_records_nor_strangers(files, directory):
    write(files)
    (directory / "tmp" / file_of(directory).name).write_bytes(file_of(directory).read_bytes())
    assert list(files.keys()) == [KEY]
    assert files.files.paths() == [file_of(directory)]
    assert list(verify(files.files, SIGNATURE)) == []


# Verifying


def test_verify_names_every_bad_file_and_counts_all(files, directory):
    for key in (KEY, OTHER, FAR, "ab00"):
        write(files, key)
    write(files, "ab01", signature="model-b")
    add_strangers(directory)
    (directory / "other").mkdir()
    cut, altered, moved = (file_of(directory, key) for key in (OTHER, FAR, "ab02"))
    cut.write_bytes(cut.read_bytes()[:-1])
    content = altered.read_bytes()
    altered.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    file_of(directory, "ab00").rename(moved)
    file_of(directory, "abcd").mkdir()
    file_of(directory, "abce").symlink_to(file_of(directory))
    wanted = dict.fromkeys([*strangers(directory), directory / "other"], KVForeignError)
    wanted |= dict.fromkeys([file_of(directory, "ab01"), moved], KVForeignError)
    wanted |= dict.fromkeys([cut, altered], KVCorruptError)
    wanted |= dict.fromkeys([file_of(directory, key) for key in ("abcd", "abce")], KVCorruptError)
    counted = []
    problems = list(
        verify(files.files, SIGNATURE, lambda done, total: counted.append((done, total)))
    )
    assert {problem.path: type(problem.error) for problem in problems} == wanted
    assert [problem.path for problem in problems] == sorted(wanted)
    assert all(str(problem.path) in str(problem.error) for problem in problems)
    assert counted == [(done, len(wanted) + 1) for done in range(1, len(wanted) + 2)]


def test_verify_passes_over_a_record_deleted_meanwhile(files, monkeypatch):
    write(files)
    write(files, OTHER)
    listed = files.files.paths()
    files.delete(KEY)
    monkeypatch.setattr(files.files, "paths", lambda: listed)
    assert list(verify(files.files, SIGNATURE)) == []


def test_verify_finds_damage_in_every_layer_and_in_the_token_ids(files, directory):
    write(files, shape=DEEP)
    content = file_of(directory).read_bytes()
    header = header_of(shape=DEEP)
    start = len(content) - header.data_bytes
    entry = header.entries["values"]
    for place in [0, *(entry.of_layers(range(n, n + 1)).stop - 1 for n in range(4))]:
        damaged = bytearray(content)
        damaged[start + place] ^= 0x80
        file_of(directory).write_bytes(damaged)
        (problem,) = verify(files.files, SIGNATURE)
        assert type(problem.error) is KVCorruptError


# Drafts


def test_old_drafts_go_at_opening_and_young_ones_stay(files, directory):
    write(files)
    names = {"new": 0, "young": 3500, "old": 3700, "older": 10**6}
    for name, age in names.items():
        (directory / "tmp" / name).write_bytes(b"half a record")
        os.utime(directory / "tmp" / name, (time.time() - age,) * 2)
    again = RecordFiles(LocalKVFiles(directory), SIGNATURE)
    assert sorted(path.name for path in (directory / "tmp").iterdir()) == ["new", "young"]
    assert version_of(again) == 1
    assert list(verify(again.files, SIGNATURE)) == []


def test_a_sweep_takes_all_drafts_and_names_them(files, directory):
    write(files)
    for name in ("a", "b"):
        (directory / "tmp" / name).write_bytes(b"half a record")
    assert files.files.sweep() == [directory / "tmp" / "a", directory / "tmp" / "b"]
    assert files.files.sweep() == []
    assert list(files.keys()) == [KEY]


def test_opening_makes_no_files(directory):
    files = RecordFiles(LocalKVFiles(directory), SIGNATURE)
    assert files.files.sweep() == []
    assert not directory.exists()
