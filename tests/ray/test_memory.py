"""What a router knows of a replica's memory."""

from __future__ import annotations

from fusionrag_integrations.ray.memory import WIDTH, Memory, pack


def key(number: int) -> str:
    return f"{number:x}".zfill(16) * 4


def test_what_was_reported_is_held_and_nothing_else() -> None:
    memory = Memory()
    packed = pack(map(key, range(1000)))
    assert len(packed) == 1000 * WIDTH
    memory.report(packed)
    assert all(key(number) in memory for number in range(1000))
    assert not any(key(number) in memory for number in range(1000, 2000))


def test_what_was_sent_counts_until_a_report_that_is_surely_newer() -> None:
    memory = Memory()
    memory.sent([key(1)])
    assert key(1) in memory
    memory.report(pack([key(2)]))  # perhaps made before the request came
    assert key(1) in memory
    memory.report(pack([key(2)]))
    assert key(1) not in memory
    assert key(2) in memory


def test_an_empty_memory() -> None:
    assert pack([]) == b""
    memory = Memory()
    memory.report(b"")
    assert key(1) not in memory
