"""What a store's tiers have done so far."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TierMetrics:
    """One tier. budget: in bytes, None for no bound. records and bytes are held now.

    hits: requests for a record that ended here. moved_bytes and moved_ms: read from disk; copied
    into device memory; of host memory, what requests waited for reads of the disk.
    """

    budget: int | None
    records: int
    bytes: int
    hits: int
    evictions: int
    moved_bytes: int
    moved_ms: float


@dataclass(frozen=True, slots=True)
class StoreMetrics:
    """All tiers, and what went wrong. misses: requests for records that are nowhere.

    corrupt: damaged or unreadable. stale: made by another model, format, salt or text.
    waited_ms: for how long requests waited for reads, of `disk.moved_ms` that these took.
    """

    device: TierMetrics
    host: TierMetrics
    disk: TierMetrics
    misses: int
    corrupt: int
    stale: int
    waited_ms: float
