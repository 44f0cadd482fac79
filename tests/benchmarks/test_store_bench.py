"""The benchmark of a store: what is read, when, and what is counted as waiting."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks import store_prefetch
from benchmarks.results.tables import store_markdown
from benchmarks.store import measure_store
from benchmarks.store_prefetch import Times, rows_of
from benchmarks.store_reads import KINDS, ROUNDS, drop_cached, measure_load, measure_lookups
from fusionrag_integrations.errors import InvalidInputError, KVCorruptError
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.store.kv.local import LocalKVFiles
from fusionrag_integrations.store.kv.record_files import RecordFile
from fusionrag_integrations.store.kv.record_store import RecordStore
from tests.store.made import SIGNATURE, random_kv

SLOW_MS = 20.0


@pytest.fixture(scope="module")
def model(model_dir: Path) -> CausalModel:
    return CausalModel.load(model_dir)


@pytest.fixture
def store(tmp_path: Path) -> RecordStore:
    made = RecordStore(LocalKVFiles(tmp_path), SIGNATURE, "float32")
    for key in ("aa", "ab", "cc"):
        made.put(random_kv(key))
    return made


def paths_of(store: RecordStore) -> list[Path]:
    return [Path(store.files.files.name_of(key)) for key in sorted(store.keys())]


def nothing(*_: object) -> None:
    """Tell no progress."""


def measured(model: CausalModel, *parts: str, **changes: Any) -> dict[str, Any]:
    asked = {"ratio": 0.0, "gap_ms": 150.0, "repeat": 2, "records": 20}
    return measure_store(model, 300, nothing, parts=parts, **(asked | changes))


class TestLoad:
    def test_speeds_of_every_kind(self, store: RecordStore) -> None:
        told: list[tuple[int, int]] = []
        result = measure_load(
            store, paths_of(store), 2, lambda done, total: told.append((done, total))
        )
        assert (result["records"], result["bytes"]) == (3, store.size_bytes())
        assert [(row["files"], row["memory"]) for row in result["rows"]] == list(KINDS)
        for row in result["rows"]:
            assert row["plain_mb_s"] > row["verified_mb_s"] > 0.0
            for name in ("plain", "verified", "ratio"):
                low, high = row[f"{name}_spread"]
                assert low <= row["ratio" if name == "ratio" else f"{name}_mb_s"] <= high
        rounds = 1 + 2 * ROUNDS
        assert told == [(done, rounds * len(KINDS)) for done in range(rounds * len(KINDS) + 1)]
        assert result["dropped"] in (True, False)

    def test_both_ways_read_every_file_once_a_round(
        self, store: RecordStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plain: list[Path] = []
        verified: list[str] = []
        read_bytes, get = Path.read_bytes, store.get

        def read(path: Path) -> bytes:
            plain.append(path)
            return read_bytes(path)

        def got(key: str) -> object:
            verified.append(key)
            return get(key)

        monkeypatch.setattr(Path, "read_bytes", read)
        monkeypatch.setattr(store, "get", got)
        measure_load(store, paths_of(store), 1, nothing)
        times = (1 + ROUNDS) * len(KINDS)
        assert Counter(plain) == dict.fromkeys(paths_of(store), times)
        assert Counter(verified) == dict.fromkeys(store.keys(), times)

    def test_what_is_verified_is_refused_where_it_is_damaged(self, store: RecordStore) -> None:
        path = paths_of(store)[1]
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(KVCorruptError, match=path.stem):
            measure_load(store, paths_of(store), 1, nothing)

    def test_files_that_are_dropped_stay_as_they_are(self, store: RecordStore) -> None:
        paths = paths_of(store)
        before = [path.read_bytes() for path in paths]
        drop_cached(paths)
        assert [path.read_bytes() for path in paths] == before


def test_lookups_go_to_whole_records_among_all(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    get = RecordStore.get

    def got(store: RecordStore, key: str) -> object:
        assert len(list(store.keys())) == 30
        record = get(store, key)
        asked.append(record.key)
        return record

    monkeypatch.setattr(RecordStore, "get", got)
    result = measure_lookups(30, 200, nothing)
    assert (result["records"], result["lookups"]) == (30, 200) == (30, len(asked))
    assert len(set(asked)) > 20
    assert 0.0 < result["p50_ms"] <= result["p99_ms"]
    assert 0.0 < result["plain_p50_ms"] <= result["plain_p99_ms"]


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Each read of a record takes 20 ms more; the times when reads began."""
    began: list[float] = []
    read_all = RecordFile.read_all

    def slowly(file: RecordFile, data: memoryview) -> None:
        began.append(time.perf_counter())
        time.sleep(SLOW_MS / 1e3)
        read_all(file, data)

    monkeypatch.setattr(RecordFile, "read_all", slowly)
    return began


class TestPrefetch:
    def test_reads_go_on_before_the_request(self, model: CausalModel, slow: list[float]) -> None:
        rows = measured(model, "prefetch")["rows"]
        assert [(row["tier"], row["prefetch"]) for row in rows] == [
            (tier, prefetch)
            for tier in ("cold disk", "warm disk", "host", "device")
            for prefetch in (False, True)
        ]
        for without, behind in (rows[:2], rows[2:4]):
            assert min(without["read_ms"], behind["read_ms"]) >= SLOW_MS
            assert without["waited_ms"] >= SLOW_MS > behind["waited_ms"]
            assert SLOW_MS <= behind["fits_ms"] <= 150.0
            assert behind["hidden"] >= 0.8
            assert (without["hidden"], without["fits_ms"]) == (None, None)
        for row in rows[4:]:
            assert row["read_ms"] == 0.0
            assert row["waited_ms"] < SLOW_MS
            assert (row["hidden"], row["fits_ms"]) == (None, None)
        for row in rows:
            assert row["spread_ms"][0] <= row["ttft_ms"] <= row["spread_ms"][1]

    def test_only_what_fits_into_the_gap_counts_as_hidden(self) -> None:
        without = [Times(300.0, 90.0, 80.0), Times(310.0, 95.0, 100.0), Times(500.0, 90.0, 30.0)]
        behind = [Times(260.0, 90.0, 40.0), Times(250.0, 80.0, 80.0), Times(250.0, 80.0, 0.0)]
        alone, prefetched = rows_of("warm disk", without, behind, gap_ms=50.0)
        assert (alone.ttft_ms, alone.read_ms, alone.waited_ms) == (310.0, 90.0, 80.0)
        assert (prefetched.ttft_ms, prefetched.waited_ms) == (250.0, 40.0)
        assert prefetched.fits_ms == 50.0  # of 50, 50 and 30
        assert prefetched.hidden == 0.8  # 40 of 50, 20 of 50, 30 of 30

    def test_a_gap_of_nothing_hides_nothing(self, model: CausalModel) -> None:
        behind = measured(model, "prefetch", gap_ms=0.0, repeat=1)["rows"][1]
        assert (behind["hidden"], behind["fits_ms"]) == (None, None)

    def test_every_request_from_disk_reads_all_records_and_no_other_reads_any(
        self, model: CausalModel, slow: list[float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        dropped: list[int] = []
        monkeypatch.setattr(store_prefetch, "drop_cached", lambda paths: dropped.append(len(paths)))
        measured(model, "prefetch", repeat=1, gap_ms=1.0)
        (records,) = set(dropped)
        assert len(dropped) == 2 * 2  # cold, with and without, in a round that warms up and one
        assert len(slow) == records * (2 + 2 * len(dropped))  # to host and device; cold and warm


def test_all_parts_of_a_store(model: CausalModel) -> None:
    result = measured(model, "load", "lookup", "prefetch", kv_format="int8", repeat=1)
    assert {"hardware", "versions", "model", "device", "dtype"} <= result.keys()
    assert (result["format"], result["ratio"], result["gap_ms"]) == ("int8", 0.0, 150.0)
    assert 280 <= result["context"] <= 300
    plain = measured(model, "load", repeat=1)
    assert plain["load"]["bytes"] > 2 * result["load"]["bytes"]
    assert plain["format"] == "float32"
    assert "lookup" not in plain
    assert "rows" not in plain
    tables = store_markdown(result).split("\n\n")
    assert len(tables[0].splitlines()) == 2 + len(KINDS)
    assert "lookups of small records among 20: median" in tables[1]
    assert len(tables[2].splitlines()) == 2 + 8
    for table in (tables[0], tables[2]):
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_what_cannot_be_measured(model: CausalModel) -> None:
    with pytest.raises(InvalidInputError, match="Unknown parts speed; choose among load, lookup"):
        measured(model, "load", "speed")
    with pytest.raises(InvalidInputError, match="5000 tokens is too long"):
        measure_store(model, 5000, nothing)
