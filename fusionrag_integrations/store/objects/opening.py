"""Which `Objects` a URL needs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypeGuard
from urllib.request import url2pathname

from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.store.objects.base import Objects
from fusionrag_integrations.store.objects.directory import DirectoryObjects

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/|[a-z0-9]+::")  # one stroke is a slip
_PROTOCOL = re.compile(r"[A-Za-z0-9+.-]+(?=://)")
_LAST_STROKES = re.compile(r"(?<=[^:/])/+$")  # not those of file:///
_FILE = "file://"


def is_url(store: object) -> TypeGuard[str]:
    """Whether a store is named by a URL, not by a directory of this machine."""
    return isinstance(store, str) and _URL.match(store) is not None


def open_objects(url: str) -> Objects:
    """The objects at a URL, with or without a stroke at its end.

    Raises `InvalidInputError` where it names nothing that can be read.
    """
    url = _LAST_STROKES.sub("", _PROTOCOL.sub(lambda found: found[0].lower(), url, count=1))
    if "://" not in url and "::" not in url:
        raise InvalidInputError(
            f"The store {url} is no URL: two strokes follow the protocol, as in "
            f"s3://bucket/prefix. A directory of this name is ./{url}."
        )
    if url.startswith(_FILE):
        machine, slash, path = url.removeprefix(_FILE).partition("/")
        if machine not in ("", "localhost") or not path:
            raise InvalidInputError(
                f"The store {url} names no directory of this machine: give file:///path/to/store."
            )
        return DirectoryObjects(url, Path(url2pathname(slash + path)))
    from fusionrag_integrations.store.objects.fsspec_objects import FsspecObjects

    return FsspecObjects(url)
