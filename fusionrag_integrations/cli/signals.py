"""SIGTERM as Ctrl-C, for commands that have processes of their own to end."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM has come."""


@contextmanager
def terminable() -> Iterator[None]:
    """Have SIGTERM interrupt what runs here, and raise `Terminated` at its end."""
    came = False

    def interrupt(sig: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt as error:  # which Ray may have raised anew
        if came:
            raise Terminated from error
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
