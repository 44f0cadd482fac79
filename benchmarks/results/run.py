"""The directory that `fusionrag bench quality --out` made, and what is added to it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.results.leads import leads, published_leads
from fusionrag_integrations.bench.log import open_log
from fusionrag_integrations.bench.measurement import Measurement
from fusionrag_integrations.support.atomic_files import write_output
from fusionrag_integrations.support.inputs import parse_json


def add_leads(run: Path) -> None:
    """Add `leads` and `leads_published`, of the strategies that its rows are of, to run.json."""
    result = read_run(run)
    measured = _measurements(run / "log.jsonl", result)
    result["leads"] = [asdict(lead) for lead in leads(measured)]
    result["leads_published"] = [asdict(lead) for lead in published_leads(measured)]
    write_output(run / "run.json", f"{json.dumps(result, indent=2)}\n".encode())


def read_run(run: Path) -> dict[str, Any]:
    """Its run.json."""
    result: dict[str, Any] = parse_json((run / "run.json").read_text())
    return result


def _measurements(log: Path, result: dict[str, Any]) -> list[Measurement]:
    """Question by question, strategies in the order of the rows."""
    identity = parse_json(log.read_text().partition("\n")[0])
    del identity["format"]
    done = open_log(log, identity)
    shown = dict.fromkeys((row["strategy"], row["kv"], row["ratio"]) for row in result["rows"])
    measured = []
    for _, held in sorted(done.items()):
        by_name = {(s.name, s.placed, s.ratio): m for s, m in held.items()}
        measured += [by_name[name] for name in shown]
    return measured
