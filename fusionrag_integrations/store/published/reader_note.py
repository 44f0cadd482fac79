"""Which version a reader has, so that what it reads isn't collected.

readers/<random>.json   the version's number, and until when the note counts

A reader that may not write leaves none. Its version then lasts for the grace that collecting was
given.
"""

from __future__ import annotations

import json
import logging
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
        self._number = 0
        self._may_write = True
        self._beating = Beating("fusionrag-reader", SECONDS / 4, self._write)

    def set(self, number: int) -> None:
        """Note the number of the version that is read from now on."""
        self._number = number
        self._write()

    def close(self) -> None:
        """Remove the note. May be called again."""
        self._beating.close()
        if self._may_write:
            try:
                self._objects.delete([self._name])
            except StoreUnreachableError as error:
                logger.info("A reader's note is left until it expires: %s", error)

    def _write(self) -> None:
        if not self._may_write or not self._number:
            return
        note = {"number": self._number, "until": time.time() + SECONDS}
        try:
            self._objects.write(self._name, [json.dumps(note).encode()])
        except StoreUnreachableError as error:
            self._may_write = False
            logger.info("This reader leaves no note of what it reads: %s", error)


def noted(objects: Objects) -> tuple[set[int], list[str]]:
    """The versions that readers have, and the names of notes that count no more."""
    numbers: set[int] = set()
    old: list[str] = []
    for entry in list(objects.entries(FOLDER)):
        try:
            note = json.loads(objects.read(entry.name))
            lasts = float(note["until"]) > time.time()
            number = int(note["number"])
        except FileNotFoundError:
            continue  # its reader has ended
        except (ValueError, LookupError, TypeError):
            old.append(entry.name)
            continue
        if lasts:
            numbers.add(number)
        else:
            old.append(entry.name)
    return numbers, old
