"""What other threads share, over a fork: quiet while the process forks, made anew in the child.

A forked child has only the thread that forked. Locks that others held stay locked in it for ever,
their tasks are never done, and connections are the parent's.
"""

from __future__ import annotations

import os
from functools import cache
from threading import Lock
from weakref import WeakSet


class Forkable:
    """Something that a forked child goes on using. What is registered is kept by nobody."""

    def __init__(self) -> None:
        _register()
        with _process.adding:
            _process.shared.add(self)

    def hold(self) -> None:
        """Before a fork: wait until no other thread is at work here, and let none begin.

        What this locks must need no other Forkable while it is locked.
        """

    def release(self) -> None:
        """After it, in the parent and in the child: the opposite of `hold`."""

    def renew(self) -> None:
        """In the child, before `release`: replace what only the parent can use."""


class _Process:
    """This process's Forkables."""

    def __init__(self) -> None:
        self.adding = Lock()
        self.shared: WeakSet[Forkable] = WeakSet()
        self.held: list[Forkable] = []

    def before(self) -> None:
        with self.adding:
            self.held = list(self.shared)
        for each in self.held:
            each.hold()

    def in_parent(self) -> None:
        held, self.held = self.held, []
        for each in held:
            each.release()

    def in_child(self) -> None:
        self.adding = Lock()
        for each in self.held:
            each.renew()
        self.in_parent()


_process = _Process()


@cache
def _register() -> None:
    if hasattr(os, "register_at_fork"):  # not on Windows, which doesn't fork
        os.register_at_fork(
            before=_process.before,
            after_in_parent=_process.in_parent,
            after_in_child=_process.in_child,
        )
