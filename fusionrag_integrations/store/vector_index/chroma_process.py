"""What Chroma keeps per process, beyond a client: views of directories, and threads."""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path
from time import monotonic, sleep
from typing import Any, ClassVar

from fusionrag_integrations.errors import StoreError

_openings = count()
_SETTLING = 0.5  # seconds to wait for the threads of a closed client


def open_client(directory: Path) -> Any:
    """A Chroma client for a directory."""
    import chromadb
    from chromadb.config import Settings

    return chromadb.PersistentClient(
        path=_new_name(str(directory)), settings=Settings(anonymized_telemetry=False)
    )


def close_client(client: Any) -> None:
    """Close a client, and wait until its threads have ended.

    Until then they hold locks of SQLite, which would stay locked in a child forked meanwhile.
    """
    client.close()
    before, deadline = -1, monotonic() + _SETTLING
    while (now := _native_threads()) != before and monotonic() < deadline:
        before = now
        sleep(0.01)


class ThreadPool:
    """Chroma's own threads: one pool per process, started by the first use of a collection.

    A child that is forked afterwards doesn't have them, and would wait for them forever.
    """

    process: ClassVar[int | None] = None  # the id of the process that started the pool

    @classmethod
    def check(cls) -> None:
        """Raises `StoreError` where the pool is the parent process's."""
        if cls.process not in (None, os.getpid()):
            raise StoreError(
                "Chroma can't be used in this process: it was forked from one that had searched "
                "or changed an index. Search in the parent only after all workers are forked, or "
                "start workers by 'spawn'."
            )

    @classmethod
    def use(cls) -> None:
        """Like `check`, and note that this process has the pool."""
        cls.check()
        cls.process = os.getpid()


def _new_name(path: str) -> str:
    """The path in a spelling not used before.

    Chroma keeps one view per spelling of a directory's path, which doesn't see later changes.
    """
    return path + "".join("//." if bit == "1" else "/." for bit in f"{next(_openings):b}")


def _native_threads() -> int:
    """How many threads this process has, Chroma's included; 0 where that isn't known."""
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.is_dir() else 0
