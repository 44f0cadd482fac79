"""What a store's tiers hold and have done."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from fusionrag_integrations.store.kv.tier import Tier


@dataclass(frozen=True, slots=True)
class TierMetrics:
    """One tier. budget: in bytes, None for no bound. records, bytes: held now.

    hits: requests for a record that this tier served. moved_bytes, moved_ms: of the disk and the
    shared storage, read from it; of the device, copied to it; of host memory, 0.
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
    """All tiers, and records that couldn't be used. misses: those that are in no tier.

    shared: the storage that machines share, of which only hits and what was read are known; all 0
    for a store in a directory. corrupt: damaged or unreadable ones. stale: those
    of another model, format, salt or text.
    waited_ms: how long requests waited for reads of the disk, which took `disk.moved_ms`.
    """

    device: TierMetrics
    host: TierMetrics
    disk: TierMetrics
    shared: TierMetrics
    misses: int
    corrupt: int
    stale: int
    waited_ms: float


def store_metrics(
    counts: Counter[str], device: Tier[Any], host: Tier[Any], disk: Tier[Any]
) -> StoreMetrics:
    """counts: "hits", "bytes" and "ns" of each tier, such as "disk hits"; "misses", "corrupt",
    "stale" and "waited ns".
    """
    return StoreMetrics(
        device=_tier_metrics("device", device, counts),
        host=_tier_metrics("host", host, counts),
        disk=_tier_metrics("disk", disk, counts),
        shared=TierMetrics(
            budget=None,
            records=0,
            bytes=0,
            hits=counts["shared hits"],
            evictions=0,
            moved_bytes=counts["shared bytes"],
            moved_ms=counts["shared ns"] / 1e6,
        ),
        misses=counts["misses"],
        corrupt=counts["corrupt"],
        stale=counts["stale"],
        waited_ms=counts["waited ns"] / 1e6,
    )


def _tier_metrics(name: str, tier: Tier[Any], counts: Counter[str]) -> TierMetrics:
    return TierMetrics(
        budget=tier.budget,
        records=len(tier),
        bytes=tier.used,
        hits=counts[f"{name} hits"],
        evictions=tier.evictions,
        moved_bytes=counts[f"{name} bytes"],
        moved_ms=counts[f"{name} ns"] / 1e6,
    )
