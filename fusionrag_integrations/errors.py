"""Every error that the package raises on purpose.

```text
FusionRAGError
├── InvalidInputError (also a ValueError)     an argument, document or file that can't be used
│   ├── UnknownSelectorError                  a selector name that isn't registered
│   └── DocumentFormatError                   a file that can't be read as documents
├── PromptTooLongError                        more tokens than the model's context holds
├── UnsupportedModelError                     an architecture whose KV can't be moved
├── ServerError                               a server (`base_url=`) failed to answer
│   ├── ServerUnreachableError                no server there, or the connection broke
│   ├── NotAllowedError                       an API key that is wrong, or may not do this
│   └── ServerBusyError                       it has too much to do, or is closing
└── StoreError
    ├── StoreNotFoundError                    no store at this path
    ├── StoreMismatchError                    the store was made by another model or embedding
    ├── StoreBusyError                        another ingest or delete is changing the store
    ├── StoreUnreachableError                 the storage at a store's URL can't be used now
    ├── CatalogRowError                       a row of the catalog is damaged
    ├── StoreClosedError                      the store was closed, and is used all the same
    └── KVRecordError                         one record can't be used; in serving, a counted miss
        ├── KVMissingError                    no such record
        ├── KVCorruptError                    truncated, altered, or not a record at all
        ├── KVUnreadableError                 the system can't read it now
        └── KVForeignError                    intact, but made by another model, format or key
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pathlib import Path


class FusionRAGError(Exception):
    """Base of every error raised on purpose by this package."""


class InvalidInputError(FusionRAGError, ValueError):
    """An argument, document or file that can't be used; the message says what is accepted."""


class UnknownSelectorError(InvalidInputError):
    """A selector name that isn't registered; the message lists those that are."""


class DocumentFormatError(InvalidInputError):
    """A file that can't be read as documents; the message names the file and the line."""


class PromptTooLongError(FusionRAGError):
    """The prompt and the answer's budget need more tokens than the model's context holds.

    Not a ValueError: LlamaIndex takes that for malformed output of the model, and continues.
    """


class UnsupportedModelError(FusionRAGError):
    """A model whose KV can't be moved and partly recomputed; the message gives the reason."""


class ServerError(FusionRAGError):
    """The server that a component asks (`base_url=`) failed; the message says what it answered."""


class ServerUnreachableError(ServerError):
    """There is no server at the address, or the connection broke before its answer was complete."""


class NotAllowedError(ServerError):
    """The server doesn't know the API key, or the key may not do what was asked."""


class ServerBusyError(ServerError):
    """The server has too many requests, or is closing; it was asked again a few times."""


class StoreError(FusionRAGError):
    """Something is wrong with a store directory or one of its records."""


class StoreNotFoundError(StoreError):
    """There is no store at this path."""


class StoreMismatchError(StoreError):
    """The store was made by another model, ingest prefix or embedding than the one in use."""


class StoreBusyError(StoreError):
    """Another ingest or delete, in this process or another, is changing the store."""


class StoreUnreachableError(StoreError):
    """The storage at a store's URL can't be reached, or refuses; the message says what it said."""


class CatalogRowError(StoreError):
    """A row of the catalog, about a chunk or the store itself, doesn't match its checksum."""


class StoreClosedError(StoreError):
    """An engine, store or retriever was closed, and is used all the same."""

    @classmethod
    def of(cls, store: Path) -> Self:
        """The error for a store at this path."""
        return cls(f"The store at {store} was closed here; open it again to use it.")


class KVRecordError(StoreError):
    """One KV record can't be used. In serving it counts as a miss and is computed afresh."""


class KVMissingError(KVRecordError):
    """The store holds no record under this key."""


class KVCorruptError(KVRecordError):
    """The record is damaged: truncated, altered, or not a record at all."""


class KVUnreadableError(KVRecordError):
    """The system can't read the record now: permissions, open files, a failing disk."""


class KVForeignError(KVRecordError):
    """The record is intact but belongs to another model, format version or key."""
