"""The lock of a store's directory, which is held to change what is in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import Timeout

from fusionrag_integrations.errors import StoreBusyError, StoreError
from fusionrag_integrations.store.layout import LOCK_FILE
from fusionrag_integrations.support.atomic_files import locked


@contextmanager
def holding(store: Path, seconds: float = 0.0) -> Iterator[None]:
    """Hold the lock of the store in a directory. seconds: to wait for it.

    Raises `StoreBusyError` while another process or thread holds it, `StoreError` for a read-only
    store.
    """
    try:
        lock = locked(store / LOCK_FILE, seconds)
    except Timeout as error:
        raise StoreBusyError(
            f"Another ingest or delete is changing the store at {store}. Wait for it to end."
        ) from error
    except OSError as error:
        raise StoreError(
            f"The store at {store} can't be written: {error}. Answering from it needs no writing."
        ) from error
    with lock:
        yield
