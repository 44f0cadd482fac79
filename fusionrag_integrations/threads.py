"""Threads of one owner: as many as are needed up to a bound, and gone when it is closed."""

from __future__ import annotations

import os
from asyncio import wrap_future
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from pathlib import Path
from threading import Lock, get_ident
from typing import ParamSpec, Self, TypeVar

from fusionrag_integrations.errors import StoreClosedError
from fusionrag_integrations.forks import Forkable

AT_ONCE = min(32, (os.cpu_count() or 1) + 4)  # calls of an event loop that are at work at once

Given = ParamSpec("Given")
Result = TypeVar("Result")


class Closable:
    """A context manager that is closed at the end of its block."""

    def close(self) -> None:
        """Release what is held."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Threads(Forkable, Closable):
    """Runs calls in threads of its own, in the order given. A forked child has new ones."""

    def __init__(self, name: str, store: Path, at_once: int = AT_ONCE) -> None:
        """name: how the threads' names begin. store: whose they are, for messages."""
        self._name = name
        self._store = store
        self._at_once = at_once
        self._closed = False
        self.renew()
        super().__init__()

    def renew(self) -> None:
        """What was asked for in the parent is done there."""
        self._changing = Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._ids: set[int] = set()  # of its threads

    def submit(
        self, call: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs
    ) -> Future[Result]:
        """Call it in a thread. Raises `StoreClosedError` once they are closed."""
        with self._changing:
            if self._closed:
                raise StoreClosedError.of(self._store)
            if self._pool is None:
                ids = self._ids  # not this itself, which a thread would keep from being collected
                self._pool = ThreadPoolExecutor(
                    self._at_once, self._name, lambda: ids.add(get_ident())
                )
            return self._pool.submit(call, *args, **kwargs)

    async def run(
        self, call: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs
    ) -> Result:
        """Wait for a call without holding up the event loop, or taking threads of its own.

        Cancelled, a call that has not begun never does. Raises as `submit` does.
        """
        called = partial(call, *args, **kwargs)
        return await wrap_future(self.submit(copy_context().run, called))

    def close(self) -> None:
        """Wait for what was asked for; no more can be. Nothing happens the second time.

        Called in one of its own threads, it waits for none: they end with what they are at.
        """
        with self._changing:
            self._closed = True
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=get_ident() not in self._ids)
