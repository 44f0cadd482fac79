"""The corrections of a store, one a scope, as files that are there whole or not at all.

<store>/corrections/<hash of the scope>   16 bytes of xxh3 over the rest, then safetensors:
    keys, values   float32 [L, Hkv, INDICES, D]; none where a correction was measured to do harm
    about          uint8, JSON: the records' signature, the scope, its chunks then, and the ids of
                   the chunks that it is a mean over

A correction is used only while all chunks that it is a mean over are there: nothing that was
deleted is left in what is added to others. What can't be used counts as none, which answers tell,
and is measured anew.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load, save

from fusionrag_integrations.catalog import Catalog
from fusionrag_integrations.correction import FEWEST_CHUNKS, Correction
from fusionrag_integrations.durable import read_file, remove_file, sweep, write_file
from fusionrag_integrations.errors import InvalidInputError, StoreError
from fusionrag_integrations.inputs import parse_json

logger = logging.getLogger(__name__)

DIRECTORY = "corrections"
MAX_BYTES = 1 << 28
_DIGEST_BYTES = 16
_AND_NOW = "It isn't used; `fusionrag repair` removes it, and the next ingest measures it anew."
_MISSING = "Its scope has no correction that is still true; the next ingest measures one."
_Stamp = tuple[int, int, int]


@dataclass(frozen=True, slots=True, eq=False)
class ScopeCorrection:
    """What was measured of a scope's fused KV.

    correction: None where it led answers away from full attention's. chunk_ids: those that
    it is a mean over. chunks: how many the scope had then.
    """

    correction: Correction | None
    chunk_ids: tuple[str, ...]
    chunks: int


class Corrections:
    """The corrections in a store's directory, for one model and format."""

    def __init__(self, store: Path, catalog: Catalog) -> None:
        self._directory = store / DIRECTORY
        self._drafts = self._directory / "tmp"
        self._catalog = catalog
        self._signature = catalog.info.record_signature
        self._known: dict[str, tuple[_Stamp, tuple[Correction | None, str]]] = {}
        sweep(self._drafts)

    def of(self, scope: str) -> tuple[Correction | None, str]:
        """What to add to a scope's fused KV, and why there is nothing where there should be.

        Nothing is due to a scope of few chunks, and where a correction was measured to do harm.
        Looks whether the file or the documents have changed, and reads it again only then.
        """
        now = (*self._file(scope), self._catalog.texts_revision)
        known = self._known.get(scope)
        if known is None or known[0] != now:
            known = self._known[scope] = now, self._found(scope)
        return known[1]

    def _found(self, scope: str) -> tuple[Correction | None, str]:
        try:
            found = self._true(scope)
        except StoreError as error:
            logger.warning("A correction isn't used: %s", error)
            return None, str(error)
        if found is not None:
            return found.correction, ""
        due = len(self._catalog.fused_ids(scope)) >= FEWEST_CHUNKS
        return None, _MISSING if due else ""

    def read(self, scope: str) -> ScopeCorrection | None:
        """A scope's file; None where there is none, and where it isn't true any more."""
        try:
            return self._true(scope)
        except StoreError as error:
            logger.warning("A correction isn't used: %s", error)
            return None

    def _true(self, scope: str) -> ScopeCorrection | None:
        """Like `read`. Raises `StoreError` where the file can't be used."""
        try:
            about, correction = self._checked(self._path(scope))
        except FileNotFoundError:
            return None
        chunk_ids = tuple(about["chunk_ids"])
        there = self._catalog.readable(chunk_ids)
        if len(there) < len(set(chunk_ids)):
            return None
        return ScopeCorrection(correction, chunk_ids, about["chunks"])

    def _checked(self, path: Path) -> tuple[dict[str, Any], Correction | None]:
        """What a file says and holds. Raises `StoreError`, and `FileNotFoundError`."""
        about, correction = _parsed(path)
        if about["signature"] != self._signature or self._path(str(about["scope"])) != path:
            raise StoreError(f"The correction {path} is of another store or scope. {_AND_NOW}")
        return about, correction

    def damaged(self) -> Iterator[tuple[Path, StoreError]]:
        """What can't be used, and why."""
        if os.path.lexists(self._directory) and not _is_directory(self._directory):
            yield self._directory, StoreError(f"{self._directory} isn't a directory.")
            return
        for path in self._paths():
            try:
                self._checked(path)
            except FileNotFoundError:  # replaced meanwhile
                continue
            except StoreError as error:
                yield path, error

    def write(self, scope: str, measured: ScopeCorrection) -> None:
        """Put what was measured in the place of what was. Raises `StoreError`."""
        about = {
            "signature": self._signature,
            "scope": scope,
            "chunk_ids": list(measured.chunk_ids),
            "chunks": measured.chunks,
        }
        tensors = {"about": torch.tensor(list(json.dumps(about).encode()), dtype=torch.uint8)}
        if measured.correction is not None:
            tensors |= {
                "keys": measured.correction.keys.contiguous(),
                "values": measured.correction.values.contiguous(),
            }
        content = save(tensors)
        digest = xxhash.xxh3_128(content).digest()
        path = self._path(scope)
        try:
            write_file(path, [digest, content], self._drafts)
        except OSError as error:
            raise StoreError(f"Can't write {path}: {error}") from error

    def remove_stale(self, scopes: Iterable[str] | None = None) -> None:
        """Remove the files that aren't true any more, so that nothing of deleted chunks stays.

        scopes: whose chunks have gone; None looks at all files. Raises `StoreError`.
        """
        if scopes is None:
            scopes = self._catalog.scopes()
            known = {self._path(scope) for scope in scopes}
            for path in set(self._paths()) - known:
                _remove(path)
        for scope in scopes:
            path = self._path(scope)
            if path.is_symlink() or (path.exists() and self.read(scope) is None):
                _remove(path)

    def _paths(self) -> list[Path]:
        if not _is_directory(self._directory):
            return []
        return sorted(path for path in self._directory.iterdir() if path != self._drafts)

    def _path(self, scope: str) -> Path:
        return self._directory / sha256(scope.encode(errors="surrogatepass")).hexdigest()[:32]

    def _file(self, scope: str) -> tuple[int, int]:
        """Another where a scope's file is another."""
        try:
            status = self._path(scope).lstat()
        except OSError:
            return 0, 0
        return status.st_mtime_ns, status.st_size


def _is_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _remove(path: Path) -> None:
    try:
        remove_file(path)
    except OSError as error:
        raise StoreError(f"Can't delete {path}: {error}") from error


def _parsed(path: Path) -> tuple[dict[str, Any], Correction | None]:
    """What a file says and holds. Raises `StoreError`, and `FileNotFoundError`."""
    try:
        content = read_file(path, MAX_BYTES)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StoreError(f"The correction {path} can't be read ({error}). {_AND_NOW}") from error
    digest, rest = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    try:
        if xxhash.xxh3_128(rest).digest() != digest:
            raise ValueError("its checksum is another")
        tensors = load(rest)
        about = parse_json(bytes(tensors["about"].tolist()))
        about = {name: about[name] for name in ("signature", "scope", "chunk_ids", "chunks")}
        if "keys" not in tensors:
            return about, None
        return about, Correction(tensors["keys"].float(), tensors["values"].float())
    except (ValueError, KeyError, TypeError, SafetensorError, InvalidInputError) as error:
        raise StoreError(f"The correction {path} is damaged ({error}). {_AND_NOW}") from error
