"""The records that one request uses, pinned until its end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from fusionrag_integrations.store.kv.types import LayeredKV

if TYPE_CHECKING:
    from fusionrag_integrations.store.corrections import Correction
    from fusionrag_integrations.store.kv.tiered_kv import TieredKV


class Lease:
    """The records that one request uses: none of them is evicted until `release`."""

    def __init__(self, tiers: TieredKV) -> None:
        self._tiers = tiers
        self._acquired: list[str] = []
        self._corrections: dict[str, Correction] = {}

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def release(self) -> None:
        """Unpin all records. May be called again."""
        acquired, self._acquired = self._acquired, []
        self._tiers.release(acquired, self._corrections)

    def prefetch(self, keys: Iterable[str]) -> None:
        """Begin to read what is in no memory yet, so that records are read together."""
        for key in keys:
            self._acquired.append(key)
            self._tiers.prefetch_pinned(key)

    def get(
        self, key: str, complete: bool = False, correction: Correction | None = None
    ) -> LayeredKV:
        """A record. complete: wait until all its layers are read.

        correction: what is to be added to it, which was done if it is `rotated`. Raises as
        `RecordStore.get` does; without `complete`, a damaged layer raises only when it is used.
        """
        self._acquired.append(key)
        if correction is not None:
            self._corrections[key] = correction
        record = self._tiers.acquire(key, correction)
        if complete:
            record.wait()
        return record
