"""Objects that threads share, kept usable across a fork.

A forked child has only the thread that forked. Locks that other threads held would stay locked in
it, their tasks are never done, and connections belong to the parent. So locks are held while the
process forks, and the child replaces what it can't use.
"""

from __future__ import annotations

import os
from functools import cache
from threading import Lock
from weakref import WeakSet


class Forkable:
    """Something that a forked child goes on using. Registered by a weak reference."""

    def __init__(self) -> None:
        _register()
        with _process.adding:
            _process.shared.add(self)

    def before_fork(self) -> None:
        """Before a fork: acquire the lock, so that no other thread is at work here.

        A thread that holds it must not wait for another Forkable's lock.
        """

    def after_fork(self) -> None:
        """After a fork, in parent and child: release what `before_fork` acquired."""

    def in_child(self) -> None:
        """In the child, before `after_fork`: replace what only the parent can use."""


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
            each.before_fork()

    def in_parent(self) -> None:
        held, self.held = self.held, []
        for each in held:
            each.after_fork()

    def in_child(self) -> None:
        self.adding = Lock()
        for each in self.held:
            each.in_child()
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
