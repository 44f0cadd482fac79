"""A finished run as files: run.json, table.md, and figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fusionrag_integrations.bench.figures import draw_all
from fusionrag_integrations.bench.leads import Lead, PublishedLead
from fusionrag_integrations.bench.machine import where_and_when
from fusionrag_integrations.bench.summary import QualityRow
from fusionrag_integrations.bench.tables import quality_markdown
from fusionrag_integrations.durable import write_output


def run_result(
    identity: Mapping[str, Any],
    rows: Sequence[QualityRow],
    leads: Sequence[Lead],
    published: Sequence[PublishedLead],
) -> dict[str, Any]:
    """What a run measured, where and with what, as plain values."""
    return (
        dict(identity)
        | where_and_when()
        | {
            "rows": [asdict(row) for row in rows],
            "leads": [asdict(lead) for lead in leads],
            "leads_published": [asdict(lead) for lead in published],
        }
    )


def write_run(directory: Path, result: Mapping[str, Any], rows: Sequence[QualityRow]) -> None:
    """run.json, table.md, and all figures of each kind of question on each kind of stored KV."""
    write_output(directory / "run.json", f"{json.dumps(result, indent=2)}\n".encode())
    write_output(directory / "table.md", f"{quality_markdown(rows)}\n".encode())
    draw_all(directory, result["rows"])
