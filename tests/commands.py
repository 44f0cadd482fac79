"""Running a command in this process, and questions to run it on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from fusionrag_integrations.cli import main
from fusionrag_integrations.store.catalog import Catalog
from fusionrag_integrations.store.layout import CATALOG_FILE
from tests.conftest import all_records, town

Run = Callable[..., Result]
NUMBER = re.compile(r"\d+(\.\d+)?")  # an address has more points


def run_command(*arguments: object, command: click.Command = main) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def said(result: Result) -> Any:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def error_of(result: Result) -> str:
    """The line that a refused command says; no traceback of ours."""
    assert result.exit_code in (1, 2)
    assert isinstance(result.exception, SystemExit)
    return " ".join(result.stderr.split()).split("rror:", 1)[1]


def write_rows(path: Path, first: int = 0) -> Path:
    rows = []
    for number in (first, first + 1):
        passages = [
            {"title": f"Town {n}, part {part}", "text": text}
            for n in (number, number + 1)
            for part, text in enumerate(town(n).text.split("\n\n"))
        ]
        question = f"Which house stands in town number {number}?"
        rows.append(
            {"id": str(number), "question": question, "answers": ["7"], "passages": passages}
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def neighbour_counts(run: Path) -> list[int]:
    with Catalog.open(run / "store" / CATALOG_FILE) as catalog:
        return [len(catalog.kv.neighbours(r.chunk.id)) for r in all_records(catalog)]


def numbers(group: click.Command) -> list[Any]:
    """Each option of each command that takes numbers, with the words that lead to it."""
    found = []
    waiting: list[tuple[tuple[str, ...], click.Command]] = [((), group)]
    while waiting:
        words, command = waiting.pop()
        if isinstance(command, click.Group):
            waiting += [((*words, name), inner) for name, inner in command.commands.items()]
        for option in command.params:
            if isinstance(option, click.Option) and not option.is_flag:
                default = str(option.default or option.type.name).split(",")[0]
                if NUMBER.fullmatch(default) or "integer" in option.type.name:
                    found.append(
                        pytest.param(words, option.opts[-1], id=str((*words, option.opts[-1])))
                    )
    return found
