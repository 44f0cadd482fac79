"""The corrections of a store, one a scope, as files that are there whole or not at all.

<store>/corrections/<hash of the scope>   16 bytes of xxh3 over the rest, then safetensors:
    keys, values   float32 [L, Hkv, INDICES, D]; none where a correction was measured to do harm
    about          uint8, JSON: the records' signature, the scope, its chunks then, and the ids of
                   the chunks that it is a mean over

A correction is used only while all chunks that it is a mean over are there: nothing that was
deleted is left in what is added to others. What can't be read counts as none, and is measured anew.
"""

from __future__ import annotations

import json
import logging
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
from fusionrag_integrations.correction import Correction
from fusionrag_integrations.durable import read_file, remove_file, sweep, write_file
from fusionrag_integrations.errors import InvalidInputError, StoreError
from fusionrag_integrations.inputs import parse_json

logger = logging.getLogger(__name__)

DIRECTORY = "corrections"
MAX_BYTES = 1 << 28
_DIGEST_BYTES = 16
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
        self._known: dict[str, tuple[_Stamp, Correction | None]] = {}
        sweep(self._drafts)

    def of(self, scope: str) -> Correction | None:
        """What to add to a scope's fused KV; None where nothing was measured that is still true.

        Looks whether the file or the documents have changed, and reads it again only then.
        """
        now = (*self._file(scope), self._catalog.texts_revision)
        known = self._known.get(scope)
        if known is None or known[0] != now:
            found = self.read(scope)
            known = self._known[scope] = now, None if found is None else found.correction
        return known[1]

    def read(self, scope: str) -> ScopeCorrection | None:
        """A scope's file; None where there is none, and where it isn't true any more."""
        path = self._path(scope)
        try:
            about, correction = _parsed(path)
        except FileNotFoundError:
            return None
        except (OSError, StoreError) as error:
            logger.warning("A correction isn't used: %s", error)
            return None
        if (about["signature"], about["scope"]) != (self._signature, scope):
            return None
        chunk_ids = tuple(about["chunk_ids"])
        there = self._catalog.readable(chunk_ids)
        if len(there) < len(set(chunk_ids)):
            return None
        return ScopeCorrection(correction, chunk_ids, about["chunks"])

    def damaged(self) -> Iterator[tuple[Path, Exception]]:
        """The files that can't be read, and why."""
        for path in self._paths():
            try:
                _parsed(path)
            except (OSError, StoreError) as error:
                yield path, error

    def write(self, scope: str, measured: ScopeCorrection) -> None:
        """Put what was measured in the place of what was. Raises `OSError`."""
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
        write_file(self._path(scope), [digest, content], self._drafts)

    def remove_stale(self, scopes: Iterable[str] | None = None) -> None:
        """Remove the files that aren't true any more, so that nothing of deleted chunks stays.

        scopes: whose chunks have gone; None looks at all files.
        """
        if scopes is None:
            scopes = self._catalog.scopes()
            known = {self._path(scope) for scope in scopes}
            for path in set(self._paths()) - known:
                remove_file(path)
        for scope in scopes:
            path = self._path(scope)
            if path.is_symlink() or (path.exists() and self.read(scope) is None):
                remove_file(path)

    def _paths(self) -> list[Path]:
        if not self._directory.is_dir():
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


def _parsed(path: Path) -> tuple[dict[str, Any], Correction | None]:
    """What a file says and holds. Raises `OSError`, and `StoreError` where it is damaged."""
    content = read_file(path, MAX_BYTES)
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
        raise StoreError(
            f"The correction {path} is damaged ({error}). It isn't used; `fusionrag repair` "
            "removes it, and the next ingest measures it anew."
        ) from error
