"""A published version of a store: which files it consists of, as one immutable object."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

from fusionrag_integrations.errors import InvalidInputError, StoreError, StoreMismatchError
from fusionrag_integrations.store.info import StoreInfo

FORMAT = "fusionrag-store-version"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """A file as blocks. blocks: the sha256 of each, in order; all but the last have the size that
    `blocks.py` says.
    """

    nbytes: int
    blocks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Version:
    """What a store was at one time, but for its KV, whose keys are in the catalog.

    number: from 1 on. made: in seconds since the epoch, by the writer's clock. by:
    random, tells writers apart. store: what it was made with. files: by their paths in a store's
    directory.
    """

    number: int
    made: float
    by: str
    store: StoreInfo
    files: Mapping[str, PublishedFile]

    @property
    def blocks(self) -> set[str]:
        """The blocks of all files."""
        return {block for file in self.files.values() for block in file.blocks}

    def to_bytes(self) -> bytes:
        """JSON in two lines: the format with a checksum, and the content."""
        content = {
            "number": self.number,
            "made": self.made,
            "by": self.by,
            "store": asdict(self.store),
            "files": {name: asdict(file) for name, file in sorted(self.files.items())},
        }
        body = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
        head = {"format": FORMAT, "version": FORMAT_VERSION, "sha256": sha256(body).hexdigest()}
        return json.dumps(head).encode() + b"\n" + body

    @classmethod
    def from_bytes(cls, content: bytes, name: str) -> Version:
        """Raises `StoreError` for damaged content, naming it, and `StoreMismatchError` for that of
        another release.
        """
        try:
            first, _, body = content.partition(b"\n")
            head = json.loads(first)
            if (head["format"], head["version"]) != (FORMAT, FORMAT_VERSION):
                raise StoreMismatchError(
                    f"{name} has version {head['version']!r} of the format {head['format']!r}; "
                    f"this release reads version {FORMAT_VERSION} of {FORMAT!r}."
                )
            if head["sha256"] != sha256(body).hexdigest():
                raise ValueError("its content doesn't match its checksum")
            return cls._from_json(json.loads(body))
        except (ValueError, LookupError, TypeError, AttributeError, InvalidInputError) as error:
            raise StoreError(
                f"{name} is damaged: {error}. Put it back, or delete it; if it is the newest, the "
                "store goes back to the version before it, and what was changed since has to be "
                "changed again."
            ) from error

    @classmethod
    def _from_json(cls, found: dict[str, Any]) -> Version:
        files = {
            name: PublishedFile(file["nbytes"], tuple(file["blocks"]))
            for name, file in found["files"].items()
        }
        return cls(found["number"], found["made"], found["by"], StoreInfo(**found["store"]), files)
