"""A finished run as files: run.json and table.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fusionrag_integrations.bench.machine import where_and_when
from fusionrag_integrations.bench.summary import QualityRow
from fusionrag_integrations.support.atomic_files import write_output


def run_result(identity: Mapping[str, Any], rows: Sequence[QualityRow]) -> dict[str, Any]:
    """What a run measured, where and with what, as plain values."""
    return dict(identity) | where_and_when() | {"rows": [asdict(row) for row in rows]}


def write_run(directory: Path, result: Mapping[str, Any], table: str) -> None:
    """Write run.json and table.md into a directory."""
    write_output(directory / "run.json", f"{json.dumps(result, indent=2)}\n".encode())
    write_output(directory / "table.md", f"{table}\n".encode())
