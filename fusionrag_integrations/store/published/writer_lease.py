"""One writer at a time, by a lease that expires.

writers/000000000004.json   the fourth lease: who has it, and until when

The last one counts. Whoever creates the next one has it, which is allowed once the last one has
ended or expired. Clocks of machines may differ: a lease that is taken too early costs work, and
nothing else, since both writers can't publish the same number of a version.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import time
from datetime import UTC, datetime
from uuid import uuid4

from fusionrag_integrations.errors import StoreBusyError, StoreUnreachableError
from fusionrag_integrations.store.objects.base import Objects
from fusionrag_integrations.support.beating import Beating
from fusionrag_integrations.support.threads import Closable

logger = logging.getLogger(__name__)

SECONDS = 60.0  # how long a lease lasts that isn't renewed
_LONGEST = 600.0  # seconds; one that says it lasts longer is by a clock that is wrong
FOLDER = "writers"
_NAME = re.compile(rf"{FOLDER}/\d{{12}}\.json")


class WriterLease(Closable):
    """Held from its creation until it is closed, and renewed meanwhile."""

    def __init__(self, objects: Objects) -> None:
        """Raises `StoreBusyError` while another writer has it, `StoreUnreachableError`."""
        self._objects = objects
        self._id = uuid4().hex
        names = _names(objects)
        if names:
            _check_ended(objects, names[-1])
        number = int(names[-1].removeprefix(f"{FOLDER}/").removesuffix(".json")) if names else 0
        self._name = _name(number + 1)
        created = objects.create(self._name, self._note(time.time() + SECONDS))
        if not created or self._is_overtaken():
            raise StoreBusyError(_busy(objects.url, "Another writer", "since a moment ago"))
        objects.delete(names)
        self._beating = Beating("fusionrag-lease", SECONDS / 4, self._renew)

    def check(self) -> None:
        """Raises `StoreBusyError` where another writer has taken over meanwhile."""
        if self._is_overtaken():
            raise StoreBusyError(
                f"The lease to write to {self._objects.url} expired, since it couldn't be renewed "
                "in time, and another writer has it now. Wait for it to end, and do this again."
            )

    def close(self) -> None:
        """End the lease, so that others needn't wait until it expires. May be called again."""
        self._beating.close()
        try:
            if not self._is_overtaken():
                self._objects.write(self._name, [self._note(0.0)])
        except StoreUnreachableError as error:
            logger.warning("The lease to write lasts until it expires: %s", error)

    def _is_overtaken(self) -> bool:
        # The next lease may be gone: the one behind that deletes it.
        return _names(self._objects)[-1:] > [self._name]

    def _renew(self) -> None:
        self.check()
        self._objects.write(self._name, [self._note(time.time() + SECONDS)])

    def _note(self, until: float) -> bytes:
        who = f"process {os.getpid()} on {socket.gethostname()}"
        return json.dumps({"id": self._id, "who": who, "until": until}).encode()


def _names(objects: Objects) -> list[str]:
    """The names of all leases that are there, ascending."""
    return sorted(e.name for e in objects.entries(FOLDER) if _NAME.fullmatch(e.name))


def _check_ended(objects: Objects, name: str) -> None:
    """Raises `StoreBusyError` while a lease lasts."""
    try:
        note = json.loads(objects.read(name))
        who, until = str(note["who"]), float(note["until"])
    except FileNotFoundError:
        return  # deleted by the next one's writer, who is told of below
    except (ValueError, LookupError, TypeError):
        return  # written by nothing of this package
    if 0 < until - time.time() < _LONGEST:
        when = datetime.fromtimestamp(until, UTC).strftime("%H:%M:%S UTC")
        raise StoreBusyError(_busy(objects.url, who, f"until {when} unless it is renewed"))


def _busy(url: str, who: str, since: str) -> str:
    return f"{who} is changing the store at {url}: it has the lease {since}. Wait for it to end."


def _name(number: int) -> str:
    return f"{FOLDER}/{number:012d}.json"
