"""docs/server.md: its commands and code run, against a server that its own command starts."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fusionrag_integrations.cli import main
from fusionrag_integrations.server import Keys
from tests.processes import PATIENCE, ROOT
from tests.test_docs import blocks, run_commands

pytestmark = [pytest.mark.allow_hosts(["127.0.0.1"]), pytest.mark.slow]

PAGE = ROOT / "docs" / "server.md"
PLACE = "http://127.0.0.1:8000"
COMMAND = "from fusionrag_integrations.cli import main; main()"
TOLD = re.compile(r"fusionrag-demo-2m answers at (http://127\.0\.0\.1:\d+)/v1\n")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which the page's console commands have run."""
    path = tmp_path_factory.mktemp("page")
    shutil.copytree(ROOT / "examples", path / "examples")
    before = Path.cwd()
    os.chdir(path)
    try:
        for language, text in blocks(PAGE):
            if language == "console":
                run_commands(text)
    finally:
        os.chdir(before)
    return path


@contextmanager
def serving(home: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The page's command in a process of its own, at a port that is free; it must end well."""
    [line] = [
        text
        for language, text in blocks(PAGE)
        if text.startswith("fusionrag serve") and "--ray" not in text
    ]
    arguments = shlex.split(line.replace("--port 8000", "--port 0"))[1:]
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments, *options],
        cwd=home,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        told = TOLD.fullmatch(process.stdout.readline())
        assert told, process.communicate(timeout=PATIENCE)[1]
        yield told[1], process
    finally:
        process.kill()
        process.communicate(timeout=PATIENCE)


def test_the_page_runs(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    namespace: dict[str, Any] = {}
    ran = {"curl": 0, "py": 0}
    with serving(home) as (url, process):
        for language, text in blocks(PAGE):
            if language == "py":
                exec(compile(text.replace(PLACE, url), str(PAGE), "exec"), namespace)
                ran["py"] += 1
            elif language == "bash" and "curl" in text:
                script = f"set -e\n{text.replace(PLACE, url)}"
                run = subprocess.run(
                    ["bash", "-c", script], capture_output=True, text=True, check=False
                )
                assert run.returncode == 0, f"{text}\n{run.stdout}{run.stderr}"
                ran["curl"] += text.count("curl ")
        process.send_signal(signal.SIGTERM)
        _, logged = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, logged
    assert ran["curl"] == 10
    assert ran["py"] == 4
    lines = [json.loads(line) for line in logged.splitlines() if line.startswith("{")]
    requests = [line for line in lines if line["message"] == "request"]
    assert len(requests) >= ran["curl"]
    assert {line["status"] for line in requests} == {200}
    assert "Usgi" not in logged


def test_an_interrupt_ends_it_too(home: Path) -> None:
    with serving(home) as (_, process):
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE)
        assert process.returncode == 0


def test_the_pages_file_of_keys_is_one(tmp_path: Path) -> None:
    [text] = [text for language, text in blocks(PAGE) if language == "toml"]
    file = tmp_path / "keys.toml"
    file.write_text(text)
    keys = Keys.read(file)
    digests = {name: entry["sha256"] for name, entry in tomllib.loads(text).items()}
    assert digests == {name: sha256(f"the key of {name}".encode()).hexdigest() for name in digests}
    web = keys.caller("Bearer the key of web")
    assert (web.scopes, web.may_write, web.at_once) == (("", "public"), False, None)
    editors = keys.caller("bearer the key of editors")
    assert (editors.scopes, editors.may_write, editors.at_once) == (None, True, 4)


def serve(*arguments: object) -> Any:
    return CliRunner().invoke(main, ["serve", *map(str, arguments)])


def test_without_the_extra_it_says_which(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusionrag_integrations.cli.serve.find_spec", lambda name: None)
    result = serve("--store", home / "notes-store")
    assert result.exit_code == 1
    assert "pip install 'fusionrag-integrations[serve]'" in " ".join(result.stderr.split())


def test_what_it_cannot_serve(home: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text("[a]\n")
    store = home / "notes-store"
    for arguments, told in (
        (("--store", tmp_path / "none"), "There is no store"),
        (("--store", store, "--keys", keys), "needs sha256"),
        (("--store", store, "--host", "203.0.113.7"), "Can't listen at 203.0.113.7"),
        (("--store", store, "--port", 70_000), "70000"),
        (("--store", store, "--at-once", 0), "at-once"),
    ):
        result = serve(*arguments)
        assert result.exit_code in (1, 2)
        assert told in " ".join(result.stderr.split())
