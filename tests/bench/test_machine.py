"""What a measurement says of where it was made."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

from fusionrag_integrations.bench import machine
from fusionrag_integrations.bench.machine import where_and_when


@pytest.mark.parametrize(
    ("told", "name"),
    [
        (
            "processor\t: 0\nmodel name\t: Some CPU: 3 GHz\nflags\t: x\nmodel name\t: y\n",
            "Some CPU: 3 GHz",
        ),
        ("processor\t: 0\n", None),
        (None, None),
    ],
)
def test_the_processor_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str | None, name: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine, "_CPU_INFO", tmp_path / "cpuinfo")
    if told is not None:
        (tmp_path / "cpuinfo").write_text(told)
    expected = name or platform.processor() or platform.machine()
    assert where_and_when()["hardware"] == f"{expected}, {torch.get_num_threads()} threads"
    assert where_and_when()["versions"].keys() == {"torch", "transformers", "python"}
