"""A pool of threads that its owner closes, and that survives a fork."""

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
from fusionrag_integrations.support.forks import Forkable

AT_ONCE = min(32, (os.cpu_count() or 1) + 4)  # calls of an event loop that run at once

Given = ParamSpec("Given")
Result = TypeVar("Result")


class Closable:
    """A context manager that `close` ends."""

    def close(self) -> None:
        """Release all resources."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Threads(Forkable, Closable):
    """Runs calls in a pool of threads, in the order given. A forked child has a new pool."""

    def __init__(self, name: str, store: Path, at_once: int = AT_ONCE) -> None:
        """name: prefix of the threads' names. store: whose threads they are, for messages."""
        self._name = name
        self._store = store
        self._at_once = at_once
        self._closed = False
        self.in_child()
        super().__init__()

    def in_child(self) -> None:
        """Start with an empty pool: calls submitted in the parent run there."""
        self._changing = Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._ids: set[int] = set()  # of its threads

    def submit(
        self, call: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs
    ) -> Future[Result]:
        """Run a call in a thread. Raises `StoreClosedError` once this is closed."""
        with self._changing:
            if self._closed:
                raise StoreClosedError.of(self._store)
            if self._pool is None:
                ids = self._ids  # a reference to self would keep it from being collected
                self._pool = ThreadPoolExecutor(
                    self._at_once, self._name, lambda: ids.add(get_ident())
                )
            return self._pool.submit(call, *args, **kwargs)

    async def run(
        self, call: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs
    ) -> Result:
        """Await a call that runs in a thread, instead of blocking the event loop.

        Cancelling it keeps a call from starting, but doesn't stop one. Raises as `submit` does.
        """
        called = partial(call, *args, **kwargs)
        return await wrap_future(self.submit(copy_context().run, called))

    def close(self) -> None:
        """Wait for the calls submitted, and accept no more. May be called again.

        Called from one of the pool's own threads, it doesn't wait.
        """
        with self._changing:
            self._closed = True
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=get_ident() not in self._ids)
