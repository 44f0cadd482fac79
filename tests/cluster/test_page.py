"""The commands of docs/cluster.md over S3, in the order of the page."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.commands import run_command
from tests.conftest import town

PAGE = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text()
BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """Each command over the page's bucket, as arguments; those on Ray are tried elsewhere."""
    joined = "".join(BLOCK.findall(PAGE)).replace("\\\n", " ")
    lines = [line for line in joined.splitlines() if "s3://bucket" in line and "--ray" not in line]
    return [shlex.split(line)[1:] for line in lines]


def test_they_run(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    for number in range(2):
        (tmp_path / "docs" / f"town-{number}.txt").write_text(town(number).text)
    names = [arguments[0] for arguments in commands()]
    assert names == ["index", "ask", "inspect", "collect", "reindex"]
    for arguments in commands():
        result = run_command(*(given.replace("s3://bucket", s3) for given in arguments))
        assert result.exit_code == 0, result.output
    for command in ("verify", "repair"):
        result = run_command(command, "--store", f"{s3}/manuals")
        assert result.exit_code == 0, result.output
    assert "int8" in run_command("inspect", "--store", f"{s3}/manuals").output
