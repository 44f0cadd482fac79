"""docs/troubleshooting.md: every message in it is provoked, and is what a user sees."""

from __future__ import annotations

import inspect
import logging
import re
from pathlib import Path

import pytest

from fusionrag_integrations import FusionEngine, errors
from tests.conftest import town
from tests.provocations import PROVOCATIONS, Provocation, World, see

PAGE = (Path(__file__).parent.parent / "docs" / "troubleshooting.md").read_text()
MESSAGE = re.compile(r"^(?:### |- \*\*)`(.+)`(?:\*\*)?$")


def entries() -> list[tuple[str, str]]:
    """Each message of the page, with the text that tells of it: several may share one."""
    found: list[tuple[str, str]] = []
    for section in re.split(r"^(?=##+ )", PAGE, flags=re.MULTILINE):
        lines = section.splitlines()
        found += [(m[1], section) for line in lines if (m := MESSAGE.match(line))]
    return found


TOLD = dict(entries())


def pattern(message: str) -> re.Pattern[str]:
    """A message of the page, whose `...` stands for anything."""
    return re.compile(re.escape(message).replace(re.escape("..."), ".*"), re.DOTALL)


@pytest.fixture(scope="module")
def engine(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> FusionEngine:
    """Two towns; nobody changes the store."""
    store = tmp_path_factory.mktemp("troubleshooting") / "store"
    engine = FusionEngine.from_pretrained(model_dir, store=store, chunk_tokens=48)
    engine.ingest([town(0), town(1)])
    return engine


@pytest.fixture
def world(
    engine: FusionEngine,
    model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> World:
    caplog.set_level(logging.INFO, "fusionrag_integrations")
    return World(engine, model_dir, tmp_path, monkeypatch, caplog)


@pytest.mark.parametrize(("message", "provocation"), PROVOCATIONS, ids=[m for m, _ in PROVOCATIONS])
def test_a_message_is_what_is_seen(message: str, provocation: Provocation, world: World) -> None:
    seen = see(provocation, world)
    kinds = {kind for kind, said in seen if pattern(message).fullmatch(said)}
    assert kinds, f"not among {seen}"
    assert all(f"`{kind}`" in TOLD[message] for kind in kinds)


def test_each_message_of_the_page_is_provoked_and_the_other_way_round() -> None:
    messages = [message for message, _ in entries()]
    assert len(messages) == len(set(messages))
    assert set(messages) == {message for message, _ in PROVOCATIONS}


def test_each_message_says_enough_to_be_found() -> None:
    for message in TOLD:
        assert max(map(len, message.split("..."))) >= 10, message


def test_every_public_error_is_told_of() -> None:
    classes = [name for name, _ in inspect.getmembers(errors, inspect.isclass)]
    assert [name for name in classes if f"`{name}`" not in PAGE] == []
