"""Which version a reader has, so that what it reads isn't collected.

readers/<random>.json   its number, the next one's while it is fetched, and until when that counts

A reader that may not write leaves none. Its version then lasts for the grace that collecting was
given.
"""

from __future__ import annotations

import json
import logging
import os
import time
from uuid import uuid4

from fusionrag_integrations.errors import StoreUnreachableError
from fusionrag_integrations.store.objects.base import Objects
from fusionrag_integrations.support.beating import Beating
from fusionrag_integrations.support.threads import Closable

logger = logging.getLogger(__name__)

SECONDS = 3600.0  # how long a note counts that isn't renewed
FOLDER = "readers"


class ReaderNote(Closable):
    """A reader's note, renewed until it is closed."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._name = f"{FOLDER}/{uuid4().hex}.json"
        self._numbers: tuple[int, ...] = ()
        self._is_written = False
        self._process = os.getpid()
        self._beating = Beating("fusionrag-reader", SECONDS / 4, self._write)

    def set(self, *numbers: int) -> None:
        """Note the numbers of the versions that are read from now on."""
        self._numbers = numbers
        self._write()

    def close(self) -> None:
        """Remove the note; a forked child leaves its parent's. May be called again."""
        self._beating.close()
        if self._is_written and self._process == os.getpid():
            try:
                self._objects.delete([self._name], patiently=False)
            except StoreUnreachableError as error:
                logger.info("A reader's note is left until it expires: %s", error)

    def _write(self) -> None:
        if not self._numbers:
            return
        note = {"numbers": self._numbers, "until": time.time() + SECONDS}
        try:
            self._objects.write(self._name, [json.dumps(note).encode()])
            self._is_written = True
        except StoreUnreachableError as error:
            logger.info("This reader leaves no note of what it reads: %s", error)


def noted(objects: Objects) -> tuple[set[int], list[str]]:
    """The versions that readers have, and the names of notes that count no more."""
    numbers: set[int] = set()
    old: list[str] = []
    for entry in list(objects.entries(FOLDER)):
        try:
            note = json.loads(objects.read(entry.name))
            lasts = float(note["until"]) > time.time()
            read = [int(number) for number in note["numbers"]]
        except FileNotFoundError:
            continue  # its reader has ended
        except (ValueError, LookupError, TypeError):
            old.append(entry.name)
            continue
        if lasts:
            numbers.update(read)
        else:
            old.append(entry.name)
    return numbers, old
