"""The directories of this machine that working copies are in.

<cache>/<of the URL>/<0, 1, ...>/   one for each process that has the store open at the same time
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from itertools import count
from pathlib import Path

from filelock import Timeout

from fusionrag_integrations.errors import StoreError
from fusionrag_integrations.support.atomic_files import locked, make_directory

CACHE = "FUSIONRAG_CACHE"  # the environment's variable
LOCK = "in-use.lock"


@contextmanager
def held_directory(url: str) -> Iterator[Path]:
    """The first directory for a URL that no process uses, which is held meanwhile.

    Raises `StoreError` where it can't be used.
    """
    of_url = cache_directory() / sha256(url.encode()).hexdigest()[:16]
    for number in count():
        path = of_url / str(number)
        try:
            with named_errors(path, url):
                make_directory(path)
                lock = locked(path / LOCK)
        except Timeout:
            continue
        with lock:
            yield path
        return


@contextmanager
def named_errors(path: Path, url: str) -> Iterator[None]:
    """The system's errors about a working copy's directory as `StoreError`."""
    try:
        yield
    except Timeout:  # an `OSError` too
        raise
    except OSError as error:
        raise StoreError(
            f"{path} can't be used for a working copy of {url}: {error}. Name another "
            f"directory by the environment's {CACHE}."
        ) from error


def cache_directory() -> Path:
    """Where working copies are: by the environment, or in the user's cache."""
    if given := os.environ.get(CACHE):
        return Path(given).absolute()
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches).absolute() / "fusionrag"
