"""Signals while Ray starts, which is played."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from threading import enumerate as enumerate_threads
from threading import get_ident
from types import FrameType, SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from fusionrag_integrations.cli import main
from fusionrag_integrations.cli.serve_ray import RayOptions, serve_on_ray
from fusionrag_integrations.cli.signals import Terminated
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.ray.cluster import cluster
from fusionrag_integrations.ray.settings import EngineSettings
from fusionrag_integrations.server import Limits

MAIN = get_ident()
BOTH = (signal.SIGINT, signal.SIGTERM)
Start = Callable[[Callable[[], object]], list[str]]


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Start:
    """Has a Ray that does something when it is half started; what became of it comes back."""

    def played(meanwhile: Callable[[], object]) -> list[str]:
        told: list[str] = []

        def init(**_: object) -> None:
            told.append("begun")
            meanwhile()
            time.sleep(0.1)  # in which the main thread hears of a signal
            told.append("started")

        module = SimpleNamespace(
            init=init, shutdown=lambda: told.append("ended"), is_initialized=lambda: False
        )
        monkeypatch.setitem(sys.modules, "ray", module)
        return told

    return played


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """A test's own are put back."""
    before = {sig: signal.getsignal(sig) for sig in BOTH}
    yield
    for sig, handler in before.items():
        signal.signal(sig, handler)


def ended(sig: int, frame: FrameType | None) -> None:
    raise SystemExit(sig)


@pytest.mark.parametrize("sig", BOTH)
def test_a_signal_waits_until_ray_has_started_which_is_ended_then(
    ray: Start, sig: signal.Signals
) -> None:
    told = ray(lambda: signal.pthread_kill(MAIN, sig))
    signal.signal(sig, ended)
    with pytest.raises(SystemExit) as raised, cluster(None):
        told.append("used")
    assert raised.value.code == sig
    assert told == ["begun", "started", "ended"]


def test_where_none_can_be_started_a_ray_of_somebody_else_s_goes_on(ray: Start) -> None:
    def fail() -> None:
        raise ConnectionError("nobody is there")

    told = ray(fail)
    with pytest.raises(InvalidInputError, match="nobody is there"), cluster(None):
        told.append("used")
    assert told == ["begun"]


def test_ray_is_not_started_in_the_main_thread_whose_handler_it_would_replace(ray: Start) -> None:
    threads: list[int] = []
    told = ray(lambda: threads.append(get_ident()))
    with cluster(None):
        alive = [thread.ident for thread in enumerate_threads()]
        assert threads[0] in alive  # or Ray's processes would end
        told.append("used")
    assert threads[0] != MAIN
    assert told == ["begun", "started", "used", "ended"]


@pytest.mark.parametrize(("sig", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_index_that_is_ended_while_ray_starts_says_so(
    ray: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sig: signal.Signals,
    status: int,
) -> None:
    monkeypatch.setattr(
        "fusionrag_integrations.ray.indexing.connecting.find_spec", lambda name: object()
    )
    (tmp_path / "town.txt").write_text("Pelfield lies by the river Oder.")
    told = ray(lambda: signal.pthread_kill(MAIN, sig))
    paths = (str(tmp_path / "town.txt"), "--store", str(tmp_path / "store"))
    before = signal.getsignal(signal.SIGTERM)
    ran = CliRunner().invoke(main, ["index", *paths, "--model", "demo", "--ray"])
    assert ran.exit_code == status
    assert "Interrupted. What is on disk is kept" in ran.stderr
    assert told == ["begun", "started", "ended"]
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_server_that_is_ended_while_ray_starts_ends_ray(
    ray: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def here(*_: Any) -> Any:
        return nullcontext(SimpleNamespace(getsockname=lambda: ("127.0.0.1", 8000)))

    monkeypatch.setattr("fusionrag_integrations.server.bound", here)
    told = ray(lambda: signal.pthread_kill(MAIN, signal.SIGTERM))
    options = RayOptions("", None, None, None)
    with pytest.raises(Terminated):
        serve_on_ray(options, EngineSettings("m", "s"), None, Limits(), "127.0.0.1", 0)
    assert told == ["begun", "started", "ended"]
