"""What goes wrong during a soak: damaged records, and a disk without room for those who write."""

from __future__ import annotations

import errno
import logging
import os
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.errors import StoreBusyError, StoreError
from tests.long.soak.cases import OF_OTHERS, OTHERS, damaged, of_other

LEFT = (0, 0, 4, 60, 300, 1000, 2500)  # KB that are free on a full disk, so that some writes begin
ADHOC = "fusionrag_integrations.serving.adhoc"


class Damage:
    """Records that are damaged one after the other, each for a while."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files
        self._keys: list[str] = []

    @property
    def count(self) -> int:
        return len(self._keys)

    def since(self, count: int) -> set[str]:
        """The keys of those that were damaged since there were so many, the last one too."""
        return set(self._keys[max(0, count - 1) :])

    def run(self, end: threading.Event) -> None:
        chance = random.Random(1)
        while not end.wait(chance.uniform(0, 0.1)):
            record = chance.choice(self.files)
            self._keys.append(record.stem)
            with damaged(record):
                end.wait(chance.uniform(0, 0.5))


class Disk:
    """A small disk that is full now and then.

    changes: how often it was filled or emptied; an odd number while it is full. steady: held while
    the disk is filled, and by who writes to the vector index meanwhile: Chroma, which is given no
    room on a full disk, may hang on one that fills up under it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.changes = 0
        self.steady = threading.Lock()

    @property
    def is_full(self) -> bool:
        return self.changes % 2 == 1

    def was_full_since(self, changes: int) -> bool:
        return self.is_full or self.changes != changes

    def run(self, end: threading.Event) -> None:
        chance = random.Random(2)
        while not end.wait(chance.uniform(0, 3)):
            self.changes += 1
            self._fill(chance.choice(LEFT) << 10, chance.uniform(0, 2), end)
            self.changes += 1

    def _fill(self, left: int, seconds: float, end: threading.Event) -> None:
        """Leave so many bytes, also of what others delete, for so long."""
        ballast, until = self._path / "ballast", time.monotonic() + seconds
        try:
            with ballast.open("wb") as file:
                while time.monotonic() < until and not end.wait(0.01):
                    with self.steady, suppress_no_room():  # others have written meanwhile
                        more = shutil.disk_usage(self._path).free - left
                        if more > 0:
                            os.posix_fallocate(file.fileno(), file.tell(), more)
                            file.seek(0, os.SEEK_END)
        finally:
            ballast.unlink()


@contextmanager
def suppress_no_room() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


class Logs(logging.Handler):
    """What is logged meanwhile: texts of questions that weren't kept, and all errors."""

    def __init__(self) -> None:
        super().__init__()
        self.not_kept = 0
        self.errors: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        told = record.getMessage()
        if record.name == ADHOC:
            self.not_kept += 1
        if record.levelno >= logging.ERROR or (record.name == ADHOC and not is_no_room(told)):
            self.errors.append(f"{told} {getattr(record, 'fields', '')}")

    @contextmanager
    def noting(self) -> Iterator[None]:
        logging.getLogger().addHandler(self)
        try:
            yield
        finally:
            logging.getLogger().removeHandler(self)


class Writing:
    """Documents that come and go meanwhile, each until it is there and until it is gone."""

    def __init__(self, engine: FusionEngine, disk: Disk, expected: dict[str, str]) -> None:
        """expected: the answer over each document, by its id."""
        self._engine = engine
        self._disk = disk
        self._expected = expected
        self.counts: Counter[str] = Counter()
        self.errors: list[str] = []

    def run(self, end: threading.Event) -> None:
        for number in count():
            if end.is_set():
                return
            document = OTHERS[number % len(OTHERS)]
            self._until_done(partial(self._engine.ingest, [document]))
            answer = self._engine.answer(of_other(document), OF_OTHERS)
            expected = self._expected[document.id]
            if answer.text != expected or answer.missed_chunks:
                self.errors.append(f"{document.id}: {answer} in the place of {expected!r}")
            self._until_done(partial(self._engine.delete, [document.id], scope=document.scope))

    def _until_done(self, write: Callable[[], object]) -> None:
        while True:
            changes = self._disk.changes
            try:
                with self._disk.steady:
                    write()
            except StoreBusyError:  # a text of a question is being fused
                self.counts["met another write"] += 1
            except StoreError as error:
                if not (is_no_room(str(error)) and self._disk.was_full_since(changes)):
                    self.errors.append(str(error))
                    return
                self.counts["found no room"] += 1
            else:
                self.counts["done"] += 1
                return
            time.sleep(0.05)


def is_no_room(error: str) -> bool:
    """Whether an error says so: in the system's words, or SQLite's."""
    return any(reason in error for reason in ("No space left on device", "disk is full"))
