"""Versions that nobody needs are deleted, and nothing that anybody reads."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from fusionrag_integrations.errors import StoreBusyError, StoreNotFoundError
from fusionrag_integrations.store.kv.shared import object_name
from fusionrag_integrations.store.objects.base import Objects
from fusionrag_integrations.store.published.collecting import DAY, collect
from fusionrag_integrations.store.published.verifying import find_damage_at
from fusionrag_integrations.store.published.version_log import VersionLog
from fusionrag_integrations.store.published.writer_lease import WriterLease
from tests.conftest import town
from tests.store.published.sharing import Open, ask, live_keys, same, towns


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/shared"


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two days after what the test does next."""
    now = time.time

    def move() -> None:
        monkeypatch.setattr(time, "time", lambda: now() + 2 * DAY)

    return move


def kept(objects: Objects) -> set[str]:
    return {entry.name for entry in objects.entries("kv")}


def test_what_only_old_versions_use_goes(
    opened: Open, url: str, objects: Objects, later: object
) -> None:
    writer = opened(url)
    writer.ingest(towns(3))
    old = live_keys(writer)
    writer.delete(["town-1"])
    writer.ingest(towns(1))
    wanted = ask(writer)
    assert {object_name(key) for key in old} <= kept(objects)
    later()
    report = collect(url)
    assert report.versions > 0
    assert report.kv_records == len(old - live_keys(writer)) > 0
    assert kept(objects) == {object_name(key) for key in live_keys(writer)}
    assert VersionLog(objects).numbers() == list(report.kept_versions)
    assert list(find_damage_at(url)) == []
    reader = opened(url)
    assert same(ask(reader), wanted)
    assert collect(url).kv_records == 0


def test_what_a_reader_has_stays(opened: Open, url: str, objects: Objects) -> None:
    writer = opened(url)
    writer.ingest(towns(3))
    reader = opened(url)
    wanted = ask(reader)
    writer.delete(["town-2"])
    collect(url, grace=0)
    for key in list(reader.kv.keys()):
        reader.kv.delete(key)
    reader.kv.close()
    again = opened(url)
    again.ingest([town(5)])
    assert {object_name(key) for key in live_keys(reader)} <= kept(objects)
    assert wanted.missed_chunks == 0
    reader.refresh()
    old = {object_name(key) for key in live_keys(reader)}
    writer.refresh()
    collect(url, grace=0)
    assert old <= kept(objects)


def test_nothing_goes_within_the_grace(opened: Open, url: str, objects: Objects) -> None:
    writer = opened(url)
    writer.ingest(towns(2))
    before = kept(objects)
    writer.delete(["town-0"])
    writer.close()
    report = collect(url)
    assert (report.versions, report.kv_records, report.blocks) == (0, 0, 0)
    assert kept(objects) == before


def test_what_a_writer_has_begun_stays(opened: Open, url: str, objects: Objects) -> None:
    writer = opened(url)
    writer.ingest(towns(1))

    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "fused" and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        writer.ingest(towns(3), progress=interrupt)
    before = kept(objects)
    assert collect(url, grace=3600).kv_records == 0
    assert kept(objects) == before


def test_a_writer_that_began_before_publishes_nothing(opened: Open, url: str) -> None:
    writer = opened(url)
    writer.ingest(towns(1))
    version = writer.store.version
    collect(url, grace=0)
    assert writer.refresh()
    assert writer.store.version == version + 1


def test_one_at_a_time(opened: Open, url: str, objects: Objects) -> None:
    with pytest.raises(StoreNotFoundError):
        collect(url)
    opened(url)
    with WriterLease(objects), pytest.raises(StoreBusyError):
        collect(url)
