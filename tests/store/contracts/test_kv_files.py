"""What `store/kv/base.py` promises, of every implementation; and that records, and what reads them
in tiers, work over each.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch

from fusionrag_integrations.errors import (
    InvalidInputError,
    KVCorruptError,
    KVForeignError,
    KVMissingError,
)
from fusionrag_integrations.store.corrections import Correction
from fusionrag_integrations.store.kv.base import KVFile, KVFiles
from fusionrag_integrations.store.kv.disk_budget import Budgets
from fusionrag_integrations.store.kv.local import LocalKVFiles
from fusionrag_integrations.store.kv.record_files import RecordFiles
from fusionrag_integrations.store.kv.record_store import RecordStore
from fusionrag_integrations.store.kv.tiered_kv import TieredKV
from fusionrag_integrations.store.kv.types import ChunkKV, LayeredKV
from tests.store.made import SIGNATURE, assert_equal, large_kv, random_kv
from tests.store.memory import MemoryKVFiles

pytestmark = pytest.mark.contract

KEY = "abcdef01"
NO_KEYS = ["", "ABCDEF01", "abcdefg1", "../abcdef01", "abcdef01.safetensors", "abc/def", "é"]
CPU = torch.device("cpu")


@pytest.fixture(params=["local", "memory"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> KVFiles:
    return LocalKVFiles(tmp_path / "kv") if request.param == "local" else MemoryKVFiles()


@pytest.fixture
def records(files: KVFiles) -> RecordStore:
    return RecordStore(files, SIGNATURE, "float32")


def read(file: KVFile, offset: int = 0, count: int | None = None) -> bytes:
    buffer = bytearray(file.size if count is None else count)
    return bytes(buffer[: file.read([(memoryview(buffer), offset)])])


def content(files: KVFiles, key: str = KEY) -> bytes:
    with files.open(key) as file:
        return read(file)


def test_what_is_written_is_read(files: KVFiles) -> None:
    files.write(KEY, [b"header, ", memoryview(b"0123456789")[2:], b""])
    with files.open(KEY) as file:
        assert file.size == 16
        assert read(file) == b"header, 23456789"
        assert read(file, 8, 4) == b"2345"
        assert read(file, 12, 99) == b"6789"
        assert read(file, 16, 4) == read(file, 99, 4) == b""
    files.write(KEY, [b"new"])
    assert content(files) == b"new"


def test_an_empty_file_is_a_file(files: KVFiles) -> None:
    files.write(KEY, [])
    assert content(files) == b""
    assert [entry.nbytes for entry in files.entries()] == [0]


@pytest.mark.parametrize("change", ["delete", "replace"])
def test_a_reader_goes_on_reading_the_file_that_it_opened(files: KVFiles, change: str) -> None:
    files.write(KEY, [b"old " * 4])
    with files.open(KEY) as file:
        if change == "delete":
            files.delete(KEY)
        else:
            files.write(KEY, [b"new"])
        assert read(file) == b"old " * 4
    if change == "replace":
        assert content(files) == b"new"


def test_files_are_there_whole_or_not_at_all_while_others_read(files: KVFiles) -> None:
    size, failures, ended = 100_000, list[str](), threading.Event()

    def look() -> None:
        while not ended.is_set():
            try:
                with files.open(KEY) as file:
                    found = read(file, 0, size // 2) + read(file, size // 2, size)
                if len(found) != file.size or found.strip(found[:1]):
                    failures.append(f"{len(found)} of {file.size} bytes: {set(found)}")
            except KVMissingError:
                pass
            failures.extend(f"{entry}" for entry in files.entries() if entry.nbytes != size)

    readers = [threading.Thread(target=look) for _ in range(2)]
    for reader in readers:
        reader.start()
    for turn in range(60):
        files.write(KEY, [b"ab"[turn % 2 : turn % 2 + 1] * (size // 4)] * 4)
        if turn % 10 == 9:
            files.delete(KEY)
    ended.set()
    for reader in readers:
        reader.join()
    assert failures == []


def test_a_file_that_is_not_there_is_missing_and_named(files: KVFiles) -> None:
    files.delete(KEY)
    for _ in range(2):
        with pytest.raises(KVMissingError) as caught, files.open(KEY):
            pass
        assert files.name_of(KEY) in str(caught.value)
        files.write(KEY, [b"x"])
        files.delete(KEY)


@pytest.mark.parametrize("key", NO_KEYS, ids=repr)
def test_what_is_no_key_names_no_file(files: KVFiles, key: str) -> None:
    for call in (
        lambda: files.name_of(key),
        lambda: files.open(key).__enter__(),
        lambda: files.write(key, [b"x"]),
        lambda: files.delete(key),
    ):
        with pytest.raises(InvalidInputError, match="no key"):
            call()
    assert list(files.entries()) == []


def test_entries_are_sorted_and_say_size_and_time(files: KVFiles) -> None:
    before = time.time()
    assert list(files.entries()) == []
    for key in ("ff00", "ab01", "abff", "ab"):
        files.write(key, [key.encode()])
    files.delete("abff")
    found = list(files.entries())
    assert [(entry.key, entry.nbytes) for entry in found] == [("ab", 2), ("ab01", 4), ("ff00", 4)]
    assert all(before - 2 <= entry.modified <= time.time() + 2 for entry in found)


def test_names_tell_files_apart(files: KVFiles) -> None:
    assert KEY in files.name_of(KEY)
    assert files.name_of(KEY) != files.name_of("abcdef02")


def damage(files: KVFiles, at: int = -1, key: str = KEY) -> None:
    damaged = bytearray(content(files, key))
    damaged[at] ^= 1
    files.write(key, [bytes(damaged)])


def to_device(kv: LayeredKV, correction: Correction | None) -> ChunkKV:
    keys, values = kv.tensors(slice(None), CPU)
    return ChunkKV(kv.key, kv.kind, kv.token_ids, keys, values, rotated=True)


def tiers(records: RecordStore) -> TieredKV:
    return TieredKV(Path("store"), records, Budgets(), CPU, to_device)


class TestRecords:
    def test_a_record_comes_back(self, files: KVFiles, records: RecordStore) -> None:
        records.put(random_kv(KEY))
        records.put(random_kv("ab", seed=4))
        assert_equal(records.get(KEY).dense(), random_kv(KEY))
        assert list(records.keys()) == ["ab", KEY]
        assert records.size_bytes() == sum(entry.nbytes for entry in files.entries())
        assert records.file_bytes(random_kv(KEY)) == len(content(files))
        records.delete(KEY)
        with pytest.raises(KVMissingError):
            records.get(KEY)

    @pytest.mark.parametrize("at", [3, 40, -1], ids=["length", "header", "tensors"])
    def test_a_damaged_record_is_corrupt_and_named(
        self, files: KVFiles, records: RecordStore, at: int
    ) -> None:
        records.put(random_kv(KEY))
        damage(files, at)
        with pytest.raises(KVCorruptError) as caught:
            records.get(KEY)
        assert files.name_of(KEY) in str(caught.value)

    @pytest.mark.parametrize("kept", [0, 7, 100, -1])
    def test_a_record_that_was_cut_off_is_corrupt(
        self, files: KVFiles, records: RecordStore, kept: int
    ) -> None:
        records.put(random_kv(KEY))
        files.write(KEY, [content(files)[:kept]])
        with pytest.raises(KVCorruptError):
            records.get(KEY)

    def test_a_record_of_another_signature_or_key_is_foreign_and_named(
        self, files: KVFiles, records: RecordStore
    ) -> None:
        RecordStore(files, "another", "float32").put(random_kv(KEY))
        with pytest.raises(KVForeignError) as caught:
            records.get(KEY)
        assert files.name_of(KEY) in str(caught.value)
        records.put(random_kv(KEY))
        files.write("ab", [content(files)])
        with pytest.raises(KVForeignError, match="another key"):
            records.get("ab")

    def test_a_check_reads_all_of_a_record(self, files: KVFiles, records: RecordStore) -> None:
        records.put(random_kv(KEY))
        checked = RecordFiles(files, SIGNATURE)
        checked.check(KEY)
        damage(files)
        with pytest.raises(KVCorruptError):
            checked.check(KEY)


class TestTiers:
    def test_a_record_is_loaded_layer_by_layer(self, records: RecordStore) -> None:
        wanted = large_kv(KEY)
        with tiers(records) as kv, kv.lease() as lease:
            assert kv.put(wanted)
            kv.prefetch([KEY])
            record = lease.get(KEY)
            for layer in range(6):
                keys, values = record.tensors(slice(layer, layer + 1), CPU)
                assert torch.equal(keys[0], wanted.keys[layer])
                assert torch.equal(values[0], wanted.values[layer])
            assert_equal(kv.get(KEY).dense(), wanted)
            assert kv.metrics().disk.hits + kv.metrics().host.hits == 1

    def test_damage_in_a_later_layer_shows_there(
        self, files: KVFiles, records: RecordStore
    ) -> None:
        records.put(large_kv(KEY))
        damage(files)
        with tiers(records) as kv, kv.lease() as lease:
            record = lease.get(KEY)
            with pytest.raises(KVCorruptError):
                record.tensors(slice(5, 6), CPU)
            assert kv.metrics().corrupt == 1

    def test_missing_and_foreign_records_are_counted(
        self, files: KVFiles, records: RecordStore
    ) -> None:
        RecordStore(files, "another", "float32").put(random_kv("ab"))
        with tiers(records) as kv, kv.lease() as lease:
            with pytest.raises(KVMissingError):
                lease.get(KEY)
            with pytest.raises(KVForeignError):
                lease.get("ab")
            assert (kv.metrics().misses, kv.metrics().stale) == (1, 1)

    def test_a_budget_of_the_disk_holds(self, records: RecordStore) -> None:
        room = records.file_bytes(random_kv(KEY))
        with TieredKV(Path("store"), records, Budgets(disk=room), CPU, to_device) as kv:
            assert kv.put(random_kv(KEY))
            assert not kv.put(random_kv("ab"))
            assert list(kv.keys()) == [KEY]
            kv.delete(KEY)
            assert kv.put(random_kv("ab"))
