"""Files as blocks that are named by their content, so that only what changed is moved.

A catalog changes in place, and a graph of vectors mostly at its end. So most blocks of a new
version are those of the one before, which are in the storage, and on a reader's disk, already.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

from fusionrag_integrations.errors import StoreError
from fusionrag_integrations.store.objects.base import Objects
from fusionrag_integrations.store.published.version import PublishedFile

BLOCK_BYTES = 4 << 20
FOLDER = "blocks"
_AT_ONCE = 8  # blocks that are moved at once
_ADVICE = (
    "Put it back, or let a machine that has the store's working copy change a document, which "
    "writes it again. Otherwise the documents have to be indexed into a new store."
)


def block_name(block: str) -> str:
    """The name of a block's object."""
    return f"{FOLDER}/{block[:2]}/{block}"


def upload(objects: Objects, path: Path) -> PublishedFile:
    """Write the blocks of a file that the storage lacks, also those that it has lost.

    Raises `StoreUnreachableError`.
    """

    def put(part: bytes) -> str:
        block = sha256(part).hexdigest()
        if not objects.existing([block_name(block)]):
            objects.write(block_name(block), [part])
        return block

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        blocks = tuple(threads.map(put, _parts(path)))
    return PublishedFile(path.stat().st_size, blocks)


def download(objects: Objects, file: PublishedFile, near: Path) -> Iterator[bytes]:
    """The content of a file, block by block.

    near: an older or damaged copy of it on this machine, if it exists; its blocks aren't read from
    the storage. Raises `StoreError` where a block is missing or damaged, and
    `StoreUnreachableError`.
    """
    own = {sha256(part).hexdigest(): i for i, part in enumerate(_parts(near))}

    def fetch(block: str) -> bytes:
        if (index := own.get(block)) is not None:
            part = _part(near, index)
        else:
            try:
                part = objects.read(block_name(block))
            except FileNotFoundError:
                raise StoreError(
                    f"{objects.url} has lost {block_name(block)}, of which its version consists. "
                    f"{_ADVICE}"
                ) from None
        if sha256(part).hexdigest() != block:
            raise StoreError(
                f"{objects.url} is damaged: {block_name(block)} has another content than its name "
                f"says. Delete it. {_ADVICE}"
            )
        return part

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        for start in range(0, len(file.blocks), _AT_ONCE):
            yield from threads.map(fetch, file.blocks[start : start + _AT_ONCE])


def matches(path: Path, file: PublishedFile) -> bool:
    """Whether a file on this machine has this content."""
    if not path.is_file() or path.stat().st_size != file.nbytes:
        return False
    return tuple(sha256(part).hexdigest() for part in _parts(path)) == file.blocks


def _parts(path: Path) -> Iterator[bytes]:
    if not path.is_file():
        return
    with path.open("rb") as opened:
        while part := opened.read(BLOCK_BYTES):
            yield part


def _part(path: Path, index: int) -> bytes:
    with path.open("rb") as opened:
        opened.seek(index * BLOCK_BYTES)
        return opened.read(BLOCK_BYTES)
