"""What a provocation may use, and how what a user then sees is caught.

What a machine would have to be like (a GPU, a lost package, a full disk) is faked at the outermost
call that asks for it. Everything else goes wrong by itself.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from fusionrag_integrations import AnswerSettings, FusionEngine
from fusionrag_integrations.cli import main
from fusionrag_integrations.errors import FusionRAGError
from tests.conftest import town

PROMPT = f"{town(0).text}\n\nQuestion: Where is the fox?\nAnswer:"

Seen = tuple[str, str]
"""What the page calls it (an error's class, a log's level, an exit status ...), and the message."""


@dataclass(frozen=True)
class World:
    """engine: over two towns, for reading and for what is refused. tmp: a directory of its own."""

    engine: FusionEngine
    model_dir: Path
    tmp: Path
    patch: pytest.MonkeyPatch
    log: pytest.LogCaptureFixture

    @property
    def store(self) -> Path:
        return self.engine.store.path

    def copy(self) -> Path:
        """The engine's store, to be changed."""
        return shutil.copytree(self.store, self.tmp / "copy")

    def open(self, store: Path | None = None, **given: Any) -> FusionEngine:
        """Another engine with the same model; over a new store where none is given."""
        return FusionEngine.open(self.engine.model, store or self.tmp / "new", **given)

    def config(self, content: Mapping[str, Any]) -> Path:
        """A model's directory with nothing but its configuration."""
        (self.tmp / "config.json").write_text(json.dumps(content))
        return self.tmp

    def file(self, name: str, content: str | bytes = "") -> Path:
        path = self.tmp / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def full_disk(self) -> None:
        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        self.patch.setattr("fusionrag_integrations.support.atomic_files.os.fsync", full)

    def run(self, *arguments: object) -> list[Seen]:
        """The lines that the `fusionrag` command says, and that it refuses."""
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert isinstance(result.exception, SystemExit), result.output  # no traceback of ours
        return [_line(line, result.exit_code) for line in result.output.splitlines()]

    def logged(self) -> list[Seen]:
        records = [r for r in self.log.records if r.name.startswith("fusionrag_integrations")]
        return [(record.levelname, record.getMessage()) for record in records]

    def asked(self, engine: FusionEngine, prompt: str = PROMPT, **settings: Any) -> list[Seen]:
        """What an answer tells of itself, and what was logged on the way."""
        answer = engine.answer(prompt, AnswerSettings(max_tokens=1, **settings))
        reasons = [("answer.fallbacks", fallback.reason) for fallback in answer.fallbacks]
        return [("answer.full_reason", answer.full_reason), *reasons, *self.logged()]


Provocation = Callable[[World], object]
"""Raises what a user would see, or returns it: a list of `Seen`."""


@dataclass
class Provoked:
    """The messages of one section, and what provokes them."""

    pairs: list[tuple[str, Provocation]] = field(default_factory=list)

    def by(self, *messages: str) -> Callable[[Provocation], Provocation]:
        """Marks what provokes these."""

        def add(provocation: Provocation) -> Provocation:
            self.pairs.extend((message, provocation) for message in messages)
            return provocation

        return add

    def each(self, table: Mapping[str, Provocation]) -> None:
        self.pairs.extend(table.items())


def see(provocation: Provocation, world: World) -> list[Seen]:
    """What a user sees; within pydantic's error, ours too."""
    try:
        told = provocation(world)
    except ValidationError as error:
        inner = [found["ctx"]["error"] for found in error.errors() if "ctx" in found]
        return [_named(error), *(_named(one) for one in inner if isinstance(one, Exception))]
    except (FusionRAGError, ImportError, AttributeError) as error:
        return [_named(error)]
    assert isinstance(told, list), "nothing went wrong"
    return told


@contextmanager
def held(store: Path) -> Iterator[None]:
    """As if another process were changing the store."""
    from filelock import FileLock

    with FileLock(store / "writing.lock"):
        yield


def records(store: Path) -> list[Path]:
    """The files of a store's KV records."""
    return sorted((store / "kv").glob("??/*"))


def _named(error: Exception) -> Seen:
    return type(error).__name__, str(error)


def _line(line: str, code: int) -> Seen:
    """`error: SomeError: why` of ours, click's `Error: why`, a problem that `verify` found."""
    if named := re.fullmatch(r"(?:error: |fixed: )?(\w+Error): (.*)", line):
        return named[1], named[2]
    return f"exit status {code}", line.removeprefix("Error: ")
