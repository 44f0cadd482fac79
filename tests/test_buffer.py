"""How KV moves into a buffer: the order of what a GPU is told, on a stand-in for one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fusionrag_integrations.errors import KVCorruptError
from fusionrag_integrations.execution.buffer import STAGED_BYTES, KVBuffer


def always(layers: slice) -> bool:
    return True


class Device:
    """Notes what is queued on which stream; `main` is the one that layers compute on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[tuple[str, ...]] = []
        self._current = "main"
        for name, stand_in in {
            "Stream": lambda device: SimpleNamespace(wait_stream=self._wait_stream),
            "Event": lambda: SimpleNamespace(record=lambda: self._say("record")),
            "current_stream": lambda device: SimpleNamespace(wait_event=self._wait_event),
            "stream": self._on,
        }.items():
            monkeypatch.setattr(torch.cuda, name, stand_in)

    def write(self, layers: slice) -> None:
        self._say(f"write {layers.start}-{layers.stop}")

    def _say(self, what: str) -> None:
        self.told.append((self._current, what))

    def _wait_stream(self, other: Any) -> None:
        self.told.append(("side", "wait for main"))

    def _wait_event(self, event: Any) -> None:
        self._say("wait")

    @contextmanager
    def _on(self, stream: Any) -> Iterator[None]:
        self._current = "side"
        yield
        self._current = "main"


def buffer(layers: int, kept: list[str], size: int = 1000) -> KVBuffer:
    """size: bytes of all keys, and of all values."""
    device = SimpleNamespace(type="cuda")

    class Keys(list):  # type: ignore[type-arg]
        shape = (layers, 2, 10, 4)
        nbytes = size

        def record_stream(self, stream: Any) -> None:
            kept.append("for the side stream")

    keys, values = Keys(range(layers)), Keys(range(layers))
    keys.device = values.device = device  # type: ignore[attr-defined]
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call, arg-type]
    return KVBuffer(keys, values, stream)  # type: ignore[arg-type]


@pytest.mark.parametrize("groups_by_size", [1, 2, 3])
@pytest.mark.parametrize("layers", [1, 3, 4, 28])
def test_a_layer_waits_for_its_own_group_once(
    monkeypatch: pytest.MonkeyPatch, layers: int, groups_by_size: int
) -> None:
    """All of it is ready, so there are only as many groups as memory asks for."""
    device, kept = Device(monkeypatch), []
    filled = buffer(layers, kept, groups_by_size * STAGED_BYTES // 2)
    filled.fill(device.write, always)
    assert kept == ["for the side stream"] * 2  # keys and values: not given away while it writes
    size = -(-layers // groups_by_size)
    groups = [(at, min(at + size, layers)) for at in range(0, layers, size)]
    expected = [("side", "wait for main")]
    for start, stop in groups:
        expected += [("side", f"write {start}-{stop}"), ("side", "record")]
    assert device.told == expected  # all is queued, and nothing has been waited for

    device.told.clear()
    for number in range(layers):
        assert filled.layer(number) == (number, number)
        assert device.told == [("main", "wait")] * (number + 1)
    for number in range(layers):
        filled.layer(number)
    assert len(device.told) == layers


def test_all_layers_wait_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    filled = buffer(5, [])
    filled.fill(device.write, always)
    device.told.clear()
    filled.layer(2)
    assert list(filled.keys) == list(filled.values) == list(range(5))
    assert device.told == [("main", "wait")] * 5


def test_on_a_cpu_it_is_written_at_once() -> None:
    """A few layers of all chunks together, which a cache holds."""
    written: list[slice] = []
    whole = KVBuffer(torch.zeros(7, 1, 4, 2), torch.zeros(7, 1, 4, 2))
    whole.fill(written.append, always)
    assert written == [slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 7)]


def test_what_is_not_ready_is_written_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    filled = buffer(8, [])
    filled.fill(device.write, lambda layers: layers.stop <= 2)
    assert device.told[1:] == [("side", "write 0-2"), ("side", "record")]
    device.told.clear()
    filled.layer(5)  # all groups up to its own, in their order
    assert device.told == [
        *(("side", "write 2-4"), ("side", "record")),
        *(("side", "write 4-6"), ("side", "record")),
        ("main", "wait"),
    ]
    device.told.clear()
    assert list(filled.keys) == list(range(8))
    assert device.told.count(("side", "write 6-8")) == 1
    assert device.told.count(("main", "wait")) == 7


def test_on_a_cpu_too_it_is_written_by_groups_where_it_is_not_ready() -> None:
    written: list[slice] = []
    whole = KVBuffer(torch.zeros(5, 1, 4, 2), torch.zeros(5, 1, 4, 2))
    whole.fill(written.append, lambda layers: layers.stop < 3)
    assert written == [slice(0, 2)]
    whole.layer(1)
    assert written == [slice(0, 2)]
    whole.layer(2)
    assert written == [slice(0, 2), slice(2, 4)]
    whole.copy()
    assert written == [slice(0, 2), slice(2, 4), slice(4, 5)]


def test_who_reads_a_layer_meets_what_writing_raises_each_time() -> None:
    whole = KVBuffer(torch.zeros(2, 1, 4, 2), torch.zeros(2, 1, 4, 2))

    def fail(layers: slice) -> None:
        raise KVCorruptError("layer")

    whole.fill(fail, lambda layers: False)
    for _ in range(2):
        with pytest.raises(KVCorruptError):
            whole.layer(0)
