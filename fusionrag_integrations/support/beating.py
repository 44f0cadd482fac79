"""Something that must be renewed while it is held: a lease, or a reader's note."""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Event, Thread

from fusionrag_integrations.errors import StoreError
from fusionrag_integrations.support.threads import Closable

logger = logging.getLogger(__name__)


class Beating(Closable):
    """Calls `beat` every so many seconds, in a thread of its own, until it is closed.

    A beat that raises `StoreError` is logged, and the next one tries again. A forked child has no
    such thread: what it holds is its parent's.
    """

    def __init__(self, name: str, seconds: float, beat: Callable[[], object]) -> None:
        self._ended = Event()
        self._thread = Thread(
            target=_run, args=(self._ended, seconds, beat), name=name, daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Wait for a beat that is under way. May be called again."""
        self._ended.set()
        self._thread.join()


def _run(ended: Event, seconds: float, beat: Callable[[], object]) -> None:
    while not ended.wait(seconds):
        try:
            beat()
        except StoreError as error:
            logger.warning("Not renewed: %s", error)
