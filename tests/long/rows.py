"""The table of docs/reliability.md: one row a soak, with the command that repeats it.

python -m tests.long.rows    writes the table anew from docs/results/reliability/
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote

RESULTS = Path("docs/results/reliability")
PAGE = Path("docs/reliability.md")
BEGIN, END = "<!-- rows -->\n", "<!-- end of rows -->\n"


@dataclass(frozen=True, slots=True)
class Row:
    """What was done to the package, how often, and what was lost or wrong afterwards."""

    group: str
    done: str
    times: str
    lost: str
    test: str
    date: str

    def write(self) -> None:
        """Keep the row in a file named by its test."""
        name = self.test.rpartition("::")[2].removeprefix("test_")
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(asdict(self), indent=2) + "\n")


def rows() -> list[Row]:
    """All rows that were kept, by group and test."""
    found = [Row(**json.loads(file.read_text())) for file in RESULTS.glob("*.json")]
    return sorted(found, key=lambda row: (row.group, row.test))


def table() -> str:
    """The rows in Markdown."""
    lines = [
        "| | What was done | How often | What was lost or wrong | Repeat it | Date |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows():
        sockets = "--force-enable-socket " if row.test.startswith("tests/cluster/") else ""
        command = f"`.venv/bin/pytest {sockets}{quote(row.test)}`"
        lines.append(
            f"| {row.group} | {row.done} | {row.times} | {row.lost} | {command} | {row.date} |"
        )
    return "\n".join(lines) + "\n"


def page(text: str) -> str:
    """A page with the table in its place."""
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
