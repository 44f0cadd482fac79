"""Which `Objects` a URL needs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypeGuard
from urllib.request import url2pathname

from fusionrag_integrations.store.objects.base import Objects
from fusionrag_integrations.store.objects.directory import DirectoryObjects

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|[a-z0-9]+::")
_FILE = "file://"


def is_url(store: object) -> TypeGuard[str]:
    """Whether a store is named by a URL, not by a directory of this machine."""
    return isinstance(store, str) and _URL.match(store) is not None


def open_objects(url: str) -> Objects:
    """The objects at a URL. Raises `InvalidInputError` where nothing installed can read it."""
    if url.startswith(_FILE):
        return DirectoryObjects(url, Path(url2pathname(url.removeprefix(_FILE))).absolute())
    from fusionrag_integrations.store.objects.fsspec_objects import FsspecObjects

    return FsspecObjects(url)
