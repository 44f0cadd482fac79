"""A run that keeps a log goes on from where it was interrupted."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.bench.throughput import measure
from fusionrag_integrations.bench.throughput.load import closed_loop, open_loop
from fusionrag_integrations.bench.throughput.measure import measure_throughput
from fusionrag_integrations.bench.throughput.plan import Plan
from fusionrag_integrations.errors import InvalidInputError
from tests.bench.throughput.conftest import plan

PLAN = plan(clients=(2, 1))
SYSTEMS = 6  # two of ours, and four ways to full attention


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log.jsonl"


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often there was each kind of load, or limits were measured."""
    seen: Counter[str] = Counter()

    def counted(name: str, call: Any) -> Any:
        def watched(*given: Any) -> Any:
            seen[name] += 1
            return call(*given)

        return watched

    limits = ("measure_bound", measure.measure_bound), ("overtaking", measure.measure_overtaking)
    monkeypatch.setattr(measure, "closed_loop", counted("closed", closed_loop))
    monkeypatch.setattr(measure, "open_loop", counted("open", open_loop))
    for (name, call), attribute in zip(
        limits, ("measure_bound", "measure_overtaking"), strict=True
    ):
        monkeypatch.setattr(measure, attribute, counted(name, call))
    return seen


def run(engine: FusionEngine, log: Path, given: Plan = PLAN, until: str = "") -> dict[str, Any]:
    """until: the stage in whose middle it is interrupted."""

    def progress(stage: str, done: int, total: int) -> None:
        if stage == until and done == 1:
            raise KeyboardInterrupt

    return measure_throughput(engine, given, progress, log)


def test_nothing_is_measured_twice(towns: FusionEngine, log: Path, loads: Counter[str]) -> None:
    for stage, measured in (
        ("fullest", {"closed": 1}),
        ("closed", {"closed": SYSTEMS - 1 + 1, "measure_bound": 1, "overtaking": 1}),
        ("open", {"closed": 2, "open": 1}),
    ):
        with pytest.raises(KeyboardInterrupt):
            run(towns, log, until=stage)
        assert loads == Counter(measured) + Counter(closed=SYSTEMS)  # which warm up
        loads.clear()
    whole = run(towns, log)
    assert loads == Counter(closed=SYSTEMS, open=2)
    loads.clear()
    again = run(towns, log)
    assert loads == Counter(closed=SYSTEMS)
    assert again == whole
    assert len(whole["rows"]) == SYSTEMS + 3 + 3


def test_what_an_interruption_cut_is_measured_again(
    towns: FusionEngine, log: Path, loads: Counter[str]
) -> None:
    whole = run(towns, log)
    lines = log.read_text().splitlines()
    log.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:40])
    loads.clear()
    again = run(towns, log)
    assert loads == Counter(closed=SYSTEMS, open=1)
    assert again["rows"][:-1] == whole["rows"][:-1]
    assert len(log.read_text().splitlines()) == len(lines)


def test_another_plan_is_another_run(towns: FusionEngine, log: Path, loads: Counter[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(towns, log, until="fullest")
    kept = log.read_text()
    loads.clear()
    with pytest.raises(InvalidInputError, match=r"is of another run: its plan is .*'seed': 0"):
        run(towns, log, replace(PLAN, seed=1))
    assert loads == Counter()
    assert log.read_text() == kept
