"""Three tiers: what requests share, what they wait for, what stays and what goes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from fusionrag_integrations.errors import KVCorruptError, KVForeignError, KVMissingError
from fusionrag_integrations.store.corrections import INDICES, Correction
from fusionrag_integrations.store.kv.disk_budget import Budgets
from fusionrag_integrations.store.kv.kv_record import LayerReadiness
from fusionrag_integrations.store.kv.loader import STAGES
from fusionrag_integrations.store.kv.local import LocalKVFiles
from fusionrag_integrations.store.kv.record_files import RecordFile
from fusionrag_integrations.store.kv.record_format import RecordHeader, parse_header
from fusionrag_integrations.store.kv.record_store import RecordStore
from fusionrag_integrations.store.kv.tiered_kv import TieredKV
from fusionrag_integrations.store.kv.types import ChunkKV, LayeredKV
from tests.store.made import SIGNATURE, assert_equal, large_kv, random_kv

CPU = torch.device("cpu")
SMALL = 2 * 3 * 2 * 9 * 8 * 4 + 9 * 4  # bytes of the tensors of `random_kv`


def resident(kv: LayeredKV, correction: Correction | None = None) -> ChunkKV:
    """Stands for what rotates keys and adds corrections; marks what it makes."""
    keys, values = kv.tensors(slice(None), CPU)
    added = 1 if correction is None else 2
    return ChunkKV(kv.key, kv.kind, kv.token_ids, keys + added, values.clone(), rotated=True)


def stored(path: Path) -> RecordStore:
    return RecordStore(LocalKVFiles(path), SIGNATURE, "float32")


def opened(path: Path, **budgets: int | None) -> TieredKV:
    return TieredKV(path.parent, stored(path), Budgets(**budgets), CPU, resident)


@pytest.fixture(autouse=True)
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than wait at a gate at once, so that others go on."""
    monkeypatch.setattr("fusionrag_integrations.store.kv.loader.THREADS", 12)


@pytest.fixture
def kv(tmp_path: Path) -> TieredKV:
    return opened(tmp_path)


def used(kv: TieredKV, *keys: str) -> list[ChunkKV]:
    """What a request finds under these keys."""
    with kv.lease() as lease:
        found = [lease.get(key) for key in keys]
        return [
            ChunkKV(f.key, f.kind, f.token_ids, *f.tensors(slice(None), CPU), rotated=f.rotated)
            for f in found
        ]


class Gate:
    """Reads of layers wait until they are let through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[str, range]] = []
        self._first, self._all = threading.Event(), threading.Event()
        read_layers = RecordFile.read_layers

        def waiting(file: RecordFile, data: memoryview, layers: range) -> None:
            self.asked.append((file.header.key, layers))
            gate = self._all if layers.start else self._first
            assert gate.wait(10)
            read_layers(file, data, layers)

        monkeypatch.setattr(RecordFile, "read_layers", waiting)

    def pass_first(self) -> None:
        """Let the first layers through."""
        self._first.set()

    def open(self) -> None:
        self._first.set()
        self._all.set()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made = Gate(monkeypatch)
    yield made
    made.open()


class Reads:
    """Counts how often each file is read as a whole; may make all readers wait."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.keys: list[str] = []
        self.go = threading.Event()
        self.go.set()
        read_all = RecordFile.read_all

        def counting(file: RecordFile, data: memoryview) -> None:
            self.keys.append(file.header.key)
            assert self.go.wait(10)
            read_all(file, data)

        monkeypatch.setattr(RecordFile, "read_all", counting)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    return Reads(monkeypatch)


class TestHost:
    def test_a_record_is_read_once(self, kv: TieredKV, tmp_path: Path, reads: Reads) -> None:
        kv.put(random_kv("aa"))
        for _ in range(3):
            assert_equal(used(kv, "aa")[0], random_kv("aa"))
        assert reads.keys == ["aa"]
        facts = kv.metrics()
        assert (facts.disk.hits, facts.host.hits, facts.device.hits) == (1, 2, 0)
        assert (facts.host.records, facts.host.bytes) == (1, SMALL)
        assert facts.disk.moved_bytes == SMALL
        assert facts.disk.moved_ms > 0
        assert facts.disk.bytes == stored(tmp_path).size_bytes()

    def test_without_room_it_is_read_for_each_request_that_comes_alone(
        self, tmp_path: Path, reads: Reads
    ) -> None:
        kv = opened(tmp_path, host=SMALL - 1)
        kv.put(random_kv("aa"))
        used(kv, "aa")
        with kv.lease() as one, kv.lease() as other:
            assert one.get("aa") is other.get("aa")
        assert reads.keys == ["aa"] * 2
        assert kv.metrics().host.bytes == 0

    def test_what_a_request_uses_stays_and_the_coldest_of_the_others_goes(
        self, tmp_path: Path
    ) -> None:
        kv = opened(tmp_path, host=2 * SMALL)
        for key in ("aa", "bb", "cc", "dd"):
            kv.put(random_kv(key))
        with kv.lease() as lease:
            held = lease.get("aa")
            used(kv, "bb")
            used(kv, "cc")  # bb is colder than cc, and aa is in use
            used(kv, "dd")
            assert lease.get("aa") is held
            assert (kv.metrics().host.bytes, kv.metrics().host.evictions) == (2 * SMALL, 2)
            assert kv.metrics().disk.hits == 4

    def test_a_replaced_record_is_read_anew(self, kv: TieredKV) -> None:
        kv.put(random_kv("aa", seed=1))
        used(kv, "aa")
        kv.put(random_kv("aa", seed=2))
        assert_equal(used(kv, "aa")[0], random_kv("aa", seed=2))

    def test_a_deleted_record_is_nowhere(self, tmp_path: Path) -> None:
        kv = opened(tmp_path, device=None)
        kv.put(random_kv("aa"))
        used(kv, "aa")
        assert kv.metrics().device.records == 1
        kv.delete("aa")
        with pytest.raises(KVMissingError), kv.lease() as lease:
            lease.get("aa")
        facts = kv.metrics()
        assert facts.device.records == facts.host.records == facts.disk.records == 0
        assert facts.device.bytes == facts.host.bytes == facts.disk.bytes == 0
        assert facts.misses == 1


class TestSharing:
    def test_requests_at_the_same_time_share_one_read(self, kv: TieredKV, reads: Reads) -> None:
        for key in ("aa", "bb"):
            kv.put(random_kv(key))
        reads.go.clear()
        with ThreadPoolExecutor(8) as threads:
            waiting = [threads.submit(used, kv, "aa", "bb") for _ in range(8)]
            reads.go.set()
            for future in waiting:
                assert_equal(future.result()[1], random_kv("bb"))
        assert sorted(reads.keys) == ["aa", "bb"]

    def test_an_error_is_each_requests_own_and_not_remembered(
        self, kv: TieredKV, tmp_path: Path
    ) -> None:
        errors = []
        for _ in range(2):
            with pytest.raises(KVMissingError) as caught, kv.lease() as lease:
                lease.get("aa")
            errors.append(caught.value)
        assert errors[0] is not errors[1]
        kv.put(random_kv("aa"))
        assert used(kv, "aa")
        assert kv.metrics().misses == 2

    def test_what_another_process_wrote_is_found(self, kv: TieredKV, tmp_path: Path) -> None:
        with pytest.raises(KVMissingError):
            used(kv, "aa")
        opened(tmp_path).put(random_kv("aa"))
        assert used(kv, "aa")


class TestPrefetch:
    def test_the_request_finds_it_in_memory(self, kv: TieredKV, reads: Reads) -> None:
        kv.put(random_kv("aa"))
        kv.prefetch(["aa", "no key", "../../etc/passwd", "ffff"])
        with kv.lease() as lease:
            lease.get("aa")
        kv.prefetch(["aa"])
        used(kv, "aa")
        assert reads.keys == ["aa"]

    def test_what_is_missing_shows_when_it_is_asked_for(self, kv: TieredKV) -> None:
        kv.prefetch(["aa"])
        with pytest.raises(KVMissingError):
            used(kv, "aa")

    def test_it_returns_before_anything_is_read(self, kv: TieredKV, gate: Gate) -> None:
        kv.put(large_kv("aa"))
        kv.prefetch(["aa"])
        with kv.lease() as lease:
            assert not lease.get("aa").ready(slice(0, 1))
            gate.open()
            lease.get("aa").wait()

    def test_what_finds_no_room_is_not_read_on(self, tmp_path: Path, gate: Gate) -> None:
        kv = opened(tmp_path, host=SMALL)
        kv.put(large_kv("aa"))
        kv.prefetch(["aa"])
        kv.put(random_kv("bb"))
        used(kv, "bb")
        gate.open()
        kv.close()
        assert gate.asked == []


class TestLayers:
    def test_early_layers_of_all_records_come_before_late_ones(
        self, tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("fusionrag_integrations.store.kv.loader.THREADS", 1)
        kv = opened(tmp_path)
        keys = ["aa", "bb", "cc"]
        for seed, key in enumerate(keys):
            kv.put(large_kv(key, seed))
        gate.open()
        with kv.lease() as lease:
            lease.prefetch(keys)
            for key in keys:
                lease.get(key).wait()
        starts = [layers.start for _, layers in gate.asked]
        assert len(starts) == 3 * len(set(starts))
        assert starts == sorted(starts)

    def test_a_layer_can_be_used_before_the_next_has_come(self, kv: TieredKV, gate: Gate) -> None:
        kv.put(large_kv("aa"))
        with kv.lease() as lease:
            record = lease.get("aa")
            assert record.token_ids == large_kv("aa").token_ids
            gate.pass_first()
            keys, values = record.tensors(slice(0, 1), CPU)
            assert torch.equal(keys, large_kv("aa").keys[:1])
            assert torch.equal(values, large_kv("aa").values[:1])
            assert record.ready(slice(0, 2))
            assert not record.ready(slice(4, 6))
            gate.open()
            assert_equal(record.dense(), large_kv("aa"))  # type: ignore[attr-defined]
        assert len(gate.asked) <= STAGES
        assert kv.metrics().waited_ms > 0

    def test_a_header_is_parsed_once_for_all_layers(
        self, kv: TieredKV, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        parsed: list[object] = []

        def counting(content: bytes, name: object) -> RecordHeader:
            parsed.append(name)
            return parse_header(content, name)

        monkeypatch.setattr("fusionrag_integrations.store.kv.record_files.parse_header", counting)
        kv.put(large_kv("aa"))
        assert_equal(used(kv, "aa")[0], large_kv("aa"))
        assert len(parsed) == 1

    def test_damage_in_a_layer_shows_when_it_comes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("fusionrag_integrations.store.kv.loader.THREADS", 1)  # layers in order
        kv = opened(tmp_path)
        kv.put(large_kv("aa"))
        (path,) = tmp_path.glob("aa/*")
        content = bytearray(path.read_bytes())
        content[-1] ^= 1  # in the last layer's values
        path.write_bytes(content)
        with kv.lease() as lease:
            record = lease.get("aa")
            assert torch.equal(record.tensors(slice(0, 1), CPU)[0], large_kv("aa").keys[:1])
            for _ in range(2):
                with pytest.raises(KVCorruptError, match="aa"):
                    record.tensors(slice(5, 6), CPU)
        with pytest.raises(KVCorruptError), kv.lease() as lease:
            lease.get("aa", complete=True)
        facts = kv.metrics()
        assert facts.corrupt == 2  # each read is one
        assert facts.host.records == 0
        kv.put(large_kv("aa"))
        assert_equal(used(kv, "aa")[0], large_kv("aa"))

    def test_a_record_that_changes_while_it_is_read_is_not_mixed(
        self, tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("fusionrag_integrations.store.kv.loader.THREADS", 1)
        kv = opened(tmp_path)
        kv.put(large_kv("aa", seed=1))
        with kv.lease() as lease:
            record = lease.get("aa")
            gate.pass_first()
            record.tensors(slice(0, 1), CPU)
            kv.put(large_kv("aa", seed=2))
            gate.open()
            with pytest.raises(KVCorruptError, match="replaced"):
                record.wait()
        assert_equal(used(kv, "aa")[0], large_kv("aa", seed=2))

    def test_the_first_reason_stays(self) -> None:
        """A load that failed is given up, and its other layers say that nobody wants them."""
        readiness = LayerReadiness([range(0, 2), range(2, 4)], lambda seconds: None)
        readiness.fail(KVCorruptError("replaced"))
        readiness.fail(KVMissingError("given up"))
        with pytest.raises(KVCorruptError, match="replaced"):
            readiness.wait(range(0, 4))

    def test_what_nobody_wants_any_more_is_not_read_on(
        self, tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("fusionrag_integrations.store.kv.loader.THREADS", 1)
        kv = opened(tmp_path, host=0)
        kv.put(large_kv("aa"))
        with kv.lease() as lease:
            lease.get("aa")  # cancelled while its first layers are on their way
        gate.open()
        used(kv, "aa")  # it is read anew for who comes later
        kv.close()
        groups = len({layers for _, layers in gate.asked})
        assert groups > 1
        assert len(gate.asked) <= 1 + groups

    def test_what_another_request_wants_is_read_on(self, tmp_path: Path, gate: Gate) -> None:
        kv = opened(tmp_path, host=0)
        kv.put(large_kv("aa"))
        with kv.lease() as other:
            with kv.lease() as lease:
                assert lease.get("aa") is other.get("aa")
            gate.open()
            assert_equal(other.get("aa", complete=True).dense(), large_kv("aa"))  # type: ignore[attr-defined]
        assert len(gate.asked) == len(set(gate.asked))


class TestDevice:
    def test_a_used_record_moves_up(self, tmp_path: Path) -> None:
        kv = opened(tmp_path, device=2 * SMALL)
        kv.put(random_kv("aa"))
        assert not used(kv, "aa")[0].rotated
        found = used(kv, "aa")[0]
        assert found.rotated
        assert torch.equal(found.keys, random_kv("aa").keys + 1)
        facts = kv.metrics()
        assert (facts.device.hits, facts.device.records) == (1, 1)
        assert facts.device.bytes == facts.device.moved_bytes == SMALL - 9 * 4  # no token ids
        assert facts.device.moved_ms > 0

    def test_a_budget_of_nothing_holds_nothing(self, kv: TieredKV) -> None:
        kv.put(random_kv("aa"))
        used(kv, "aa")
        used(kv, "aa")
        assert kv.metrics().device.records == 0

    def test_a_record_is_moved_when_it_has_come_whole(self, tmp_path: Path, gate: Gate) -> None:
        kv = opened(tmp_path, device=None)
        kv.put(large_kv("aa"))
        with kv.lease() as lease:
            lease.get("aa")
        assert kv.metrics().device.records == 0
        gate.open()
        used(kv, "aa")
        assert kv.metrics().device.records == 1


class TestDisk:
    def test_ingest_fills_it_and_then_keeps_nothing_more(self, tmp_path: Path) -> None:
        size = stored(tmp_path / "probe").file_bytes(random_kv("aa"))
        kv = opened(tmp_path, disk=2 * size)
        assert kv.put(random_kv("aa"))
        assert kv.put(random_kv("bb"))
        assert not kv.put(random_kv("cc"))
        assert kv.put(random_kv("bb", seed=9))  # in the place of the old one
        assert list(kv.keys()) == ["aa", "bb"]
        assert kv.metrics().disk.bytes == 2 * size == stored(tmp_path).size_bytes()

    def test_a_captured_record_takes_the_place_of_the_coldest(self, tmp_path: Path) -> None:
        size = stored(tmp_path / "probe").file_bytes(random_kv("aa"))
        kv = opened(tmp_path, disk=2 * size)
        for key in ("aa", "bb"):
            kv.put(random_kv(key))
        used(kv, "aa")
        with kv.lease() as lease:
            lease.get("aa")
            assert kv.disk.put_adhoc(random_kv("cc"))
            assert list(kv.keys()) == ["aa", "cc"]
            with kv.lease() as other:
                other.get("cc")
                assert not kv.disk.put_adhoc(random_kv("dd"))  # both are in use
        facts = kv.metrics().disk
        assert (facts.bytes, facts.evictions) == (2 * size, 1)
        with pytest.raises(KVMissingError):
            used(kv, "bb")

    def test_what_lies_there_already_counts(self, tmp_path: Path) -> None:
        first = opened(tmp_path)
        for key in ("aa", "bb"):
            first.put(random_kv(key))
        size = stored(tmp_path).size_bytes()
        again = opened(tmp_path, disk=size)
        assert not again.put(random_kv("cc"))
        assert again.disk.put_adhoc(random_kv("cc"))  # the oldest gives way
        assert list(again.keys()) == ["bb", "cc"]

    def test_a_write_that_fails_is_not_counted(
        self, kv: TieredKV, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(store: RecordStore, record: ChunkKV) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(RecordStore, "put", fail)
            with pytest.raises(KeyboardInterrupt):
                kv.put(random_kv("aa"))
        assert kv.metrics().disk.bytes == 0


def test_foreign_records_are_counted(tmp_path: Path) -> None:
    RecordStore(LocalKVFiles(tmp_path), "another", "float32").put(random_kv("aa"))
    kv = opened(tmp_path)
    with pytest.raises(KVForeignError):
        used(kv, "aa")
    kv.count_stale()
    assert (kv.metrics().stale, kv.metrics().corrupt, kv.metrics().misses) == (2, 0, 0)


def test_on_the_device_a_record_has_the_correction_that_was_asked_for(tmp_path: Path) -> None:
    """A request with another one, or with none, gets the record as it is stored."""
    stored(tmp_path).put(random_kv("aa"))
    zeros = torch.zeros(2, 3, INDICES, 8)
    first, second = Correction(zeros, zeros), Correction(zeros, zeros)
    with opened(tmp_path, device=1 << 20) as kv:
        for correction in (first, second, None):
            for _ in range(2):
                with kv.lease() as lease:
                    found = lease.get("aa", correction=correction)
                    found.wait()
            assert found.rotated
            expected = resident(random_kv("aa"), correction).keys
            torch.testing.assert_close(found.tensors(slice(None), CPU)[0], expected)
            for other in {first, second, None} - {correction}:
                with kv.lease() as lease:
                    assert not lease.get("aa", correction=other).rotated
                with kv.lease() as lease:  # and so it is where the device has it again
                    lease.get("aa", correction=correction)
