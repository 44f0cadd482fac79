"""The command of docs/server.md that starts Ray on this machine, and ends it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from fusionrag_integrations.cli import main
from tests.processes import ROOT
from tests.test_docs import blocks

pytestmark = pytest.mark.enable_socket
COMMAND = "from fusionrag_integrations.cli import main; main()"
TOLD = re.compile(r"The replicas answer at (http://127\.0\.0\.1:\d+)/v1\n")
PATIENCE = 120


@pytest.mark.long
def test_it_starts_ray_answers_and_ends_what_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    page = [text for _, text in blocks(ROOT / "docs" / "server.md")]
    [index] = [text for text in page if text.startswith("fusionrag index")]
    assert CliRunner().invoke(main, shlex.split(index)[1:]).exit_code == 0
    [serve] = [text for text in page if text.startswith("fusionrag serve") and "--ray" in text]
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *shlex.split(serve.replace("8000", "0"))[1:]],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        told = TOLD.fullmatch(process.stdout.readline())
        assert told
        asked = {"messages": [{"role": "user", "content": "Who repaired Usgi Clock?"}]}
        url = f"{told[1]}/v1/chat/completions"
        response = httpx.post(url, json=asked | {"max_tokens": 20}, timeout=PATIENCE)
        assert response.status_code == 200
        assert response.json()["choices"][0]["message"]["content"]
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{told[1]}/health")
    finally:
        process.kill()
