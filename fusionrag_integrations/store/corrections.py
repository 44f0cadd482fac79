"""The corrections of a store's fused KV, one atomic file per scope.

<store>/corrections/<hash of the scope>   16 bytes of xxh3 over the rest, then safetensors:
    keys, values   float32 [L, Hkv, INDICES, D]; missing where a correction was measured to do harm
    about          uint8, JSON: the records' signature, the scope, how many chunks it had, and the
                   ids of the chunks that the correction is a mean over

A correction is used only while all chunks that it is a mean over exist: nothing of a deleted chunk
is added to others. One that can't be used counts as missing, answers report that, and the next
ingest measures it again.
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

from fusionrag_integrations.errors import InvalidInputError, StoreError
from fusionrag_integrations.store.catalog import Catalog
from fusionrag_integrations.store.layout import CORRECTIONS_DIRECTORY, DRAFTS_DIRECTORY
from fusionrag_integrations.support.atomic_files import read_file, remove_file, sweep, write_file
from fusionrag_integrations.support.inputs import parse_json

INDICES = 32
"""Indices in a chunk with separate means; the last one's is used for all later tokens."""

FEWEST_CHUNKS = 16
"""The fewest fused chunks of a scope to measure: means over fewer don't hold for the others."""


@dataclass(frozen=True, slots=True, eq=False)
class Correction:
    """keys, values: float32 [L, Hkv, INDICES, D]; keys are unrotated."""

    keys: torch.Tensor
    values: torch.Tensor

    def __post_init__(self) -> None:
        shape = tuple(self.keys.shape)
        if len(shape) != 4 or shape[2] != INDICES or shape != tuple(self.values.shape):
            raise InvalidInputError(
                f"A correction's keys and values must both be [L, Hkv, {INDICES}, D]; got {shape} "
                f"and {tuple(self.values.shape)}."
            )


logger = logging.getLogger(__name__)

MAX_BYTES = 1 << 28
_DIGEST_BYTES = 16
_HINT = "It isn't used; `fusionrag repair` removes it, and the next ingest measures it again."
_MISSING = "Its scope has no correction that is still true; the next ingest measures one."
_Stamp = tuple[int, int, int]


@dataclass(frozen=True, slots=True, eq=False)
class ScopeCorrection:
    """What was measured of a scope's fused KV.

    correction: None where it moved answers away from full attention's. chunk_ids: those that it is
    a mean over. chunks: how many the scope had then.
    """

    correction: Correction | None
    chunk_ids: tuple[str, ...]
    chunks: int


class Corrections:
    """The corrections in a store's directory, for one model and format."""

    def __init__(self, store: Path, catalog: Catalog) -> None:
        self._directory = store / CORRECTIONS_DIRECTORY
        self._drafts = self._directory / DRAFTS_DIRECTORY
        self._catalog = catalog
        self._signature = catalog.info.record_signature
        self._known: dict[str, tuple[_Stamp, tuple[Correction | None, str]]] = {}
        sweep(self._drafts)

    def of(self, scope: str) -> tuple[Correction | None, str]:
        """What to add to a scope's fused KV, or the reason why a correction is missing.

        The reason is empty where none is due: in a scope of few chunks, or where it was measured to
        do harm. Reads the file again only where it or the documents have changed.
        """
        now = (*self._stamp(scope), self._catalog.texts_revision)
        known = self._known.get(scope)
        if known is None or known[0] != now:
            found, reason = self._read(scope)
            if not found and not reason and len(self._catalog.kv.fused_ids(scope)) >= FEWEST_CHUNKS:
                reason = _MISSING
            known = self._known[scope] = now, (found.correction if found else None, reason)
        return known[1]

    def read(self, scope: str) -> ScopeCorrection | None:
        """What was measured of a scope; None where there is no file, or it is out of date."""
        return self._read(scope)[0]

    def _read(self, scope: str) -> tuple[ScopeCorrection | None, str]:
        """Like `read`, with the reason where the file can't be used."""
        try:
            return self._valid(scope), ""
        except StoreError as error:
            logger.warning("A correction isn't used: %s", error)
            return None, str(error)

    def _valid(self, scope: str) -> ScopeCorrection | None:
        """Like `read`, but raises `StoreError` where the file can't be used."""
        try:
            about, correction = self._checked(self._path(scope))
        except FileNotFoundError:
            return None
        chunk_ids = tuple(about["chunk_ids"])
        there = self._catalog.chunks.readable(chunk_ids)
        if len(there) < len(set(chunk_ids)):
            return None
        return ScopeCorrection(correction, chunk_ids, about["chunks"])

    def _checked(self, path: Path) -> tuple[dict[str, Any], Correction | None]:
        """A file's entries and correction. Raises `StoreError`, and `FileNotFoundError`."""
        about, correction = _parsed(path)
        if about["signature"] != self._signature or self._path(str(about["scope"])) != path:
            raise StoreError(f"The correction {path} is of another store or scope. {_HINT}")
        return about, correction

    def damaged(self) -> Iterator[tuple[Path, StoreError]]:
        """Files that can't be used, with the errors."""
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
        """Write what was measured, replacing the former file. Raises `StoreError`."""
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
        """Remove the files that are out of date, so that nothing of deleted chunks stays.

        scopes: those whose chunks were deleted; None checks all files. Raises `StoreError`.
        """
        if scopes is None:
            scopes = self._catalog.chunks.count_by_scope()
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

    def _stamp(self, scope: str) -> tuple[int, int]:
        """Time of change and size of a scope's file, to notice that it was replaced."""
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
    """A file's entries and correction. Raises `StoreError`, and `FileNotFoundError`."""
    try:
        content = read_file(path, MAX_BYTES)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StoreError(f"The correction {path} can't be read ({error}). {_HINT}") from error
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
        raise StoreError(f"The correction {path} is damaged ({error}). {_HINT}") from error
