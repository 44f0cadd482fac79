"""Servers on ports of their own, over a tiny model and towns of two scopes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import httpx
import pytest
from transformers import AutoTokenizer

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.server import Keys, Limits, Server, bound
from tests.conftest import town
from tests.langchain.templates import WITH_TOOLS
from tests.steps import PATIENCE
from tests.waiting import until

KEYS = {"board": "sk-of-the-board", "guest": "sk-of-a-guest", "admin": "sk-of-the-admin"}
KEYS_FILE = """
[board]
sha256 = "{board}"
scopes = ["board"]
may_write = true

[guest]
sha256 = "{guest}"
scopes = [""]
at_once = 1

[admin]
sha256 = "{admin}"
scopes = "*"
may_write = true
may_measure = true
"""


class Running:
    """A server that runs in a thread."""

    def __init__(self, server: Server, port: int) -> None:
        self.server = server
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def client(self, key: str = "") -> httpx.Client:
        headers = {"Authorization": f"Bearer {KEYS[key]}"} if key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=PATIENCE)


@contextmanager
def running(
    engine: FusionEngine, keys: Keys | None = None, limits: Limits | None = None
) -> Iterator[Running]:
    """A server over an engine, which is told to end at the end of the block."""
    server = Server(engine, keys=keys, limits=limits)
    with bound("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        until(lambda: server.started)
        try:
            yield Running(server, port)
        finally:
            server.should_exit = True
            thread.join(PATIENCE)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def filled(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FusionEngine]:
    """Towns 0 and 1 are everybody's, town 2 is the board's; the template knows tools."""
    path = tmp_path_factory.mktemp("served") / "store"
    with FusionEngine.from_pretrained(model_dir, store=path, chunk_tokens=48) as engine:
        engine.model.tokenizer = AutoTokenizer.from_pretrained(model_dir, chat_template=WITH_TOOLS)
        engine.ingest([town(0), town(1), replace(town(2), scope="board")])
        yield engine


@pytest.fixture(scope="module")
def served(filled: FusionEngine) -> Iterator[Running]:
    """A server without keys."""
    with running(filled) as server:
        yield server


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    file = tmp_path / "keys.toml"
    digests = {name: sha256(key.encode()).hexdigest() for name, key in KEYS.items()}
    file.write_text(KEYS_FILE.format(**digests))
    return Keys.read(file)
