"""JSON files with a format, a version and a checksum in their first line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import xxhash

from fusionrag_integrations.errors import StoreError
from fusionrag_integrations.support.atomic_files import read_file, remove_file, write_file

FORMAT = "fusionrag-document"
VERSION = 2
MAX_BYTES = 1 << 30


def write_json(path: Path, content: dict[str, Any], drafts: Path, *, sync: bool) -> None:
    """Write a file atomically. Raises `StoreError`.

    drafts, sync: as in `write_file`.
    """
    body = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    head = {"format": FORMAT, "version": VERSION, "xxh3_64": xxhash.xxh3_64_hexdigest(body)}
    try:
        write_file(path, [json.dumps(head).encode() + b"\n", body], drafts, sync=sync)
    except OSError as error:
        raise StoreError(f"Can't write {path}: {error}") from error


def read_json(path: Path) -> Any:
    """The content of a file. Raises `StoreError` where it is damaged or can't be read."""
    try:
        first, _, body = read_file(path, MAX_BYTES).partition(b"\n")
        head = json.loads(first)
        if (head["format"], head["version"]) != (FORMAT, VERSION):
            raise StoreError(
                f"{path} has version {head['version']!r} of the format {head['format']!r}; this "
                f"release reads version {VERSION} of {FORMAT!r}."
            )
        if head["xxh3_64"] != xxhash.xxh3_64_hexdigest(body):
            raise StoreError(f"{path} is damaged: its content doesn't match its checksum.")
        return json.loads(body)
    except OSError as error:
        raise StoreError(f"{path} can't be read: {error}") from error
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise StoreError(f"{path} is damaged: {error!r}") from error


def remove_json(path: Path) -> None:
    """Raises `StoreError` where it can't be removed."""
    try:
        remove_file(path)
    except OSError as error:
        raise StoreError(f"Can't delete {path}: {error}") from error
