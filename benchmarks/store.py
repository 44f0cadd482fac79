"""How fast KV comes from a store: reads of files, lookups, and what a prefetch hides of them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from benchmarks.store_prefetch import measure_prefetch
from benchmarks.store_reads import LOOKUPS, measure_load, measure_lookups
from fusionrag_integrations.bench.machine import described, where_and_when
from fusionrag_integrations.bench.served import invented_store
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.prompt import encode
from fusionrag_integrations.store.calibration import Calibration
from fusionrag_integrations.store.kv.record_store import format_of
from fusionrag_integrations.store.kv.types import KVFormat

PARTS = ("load", "lookup", "prefetch")


def measure_store(
    model: CausalModel,
    context: int,
    progress: Callable[[str, int, int], None],
    *,
    parts: Collection[str] = PARTS,
    kv_format: KVFormat | None = None,
    records: int = 10_000,
    ratio: float = 0.15,
    gap_ms: float = 50.0,
    repeat: int = 5,
    calibration: Calibration | None = None,
) -> dict[str, Any]:
    """A store of as many chunks as make a prompt of about `context` tokens.

    parts: what of `PARTS` to measure. kv_format: the model's dtype by default. records: of the
    store that lookups go to. ratio: of chunk tokens that requests recompute. gap_ms: between a
    prefetch and its request. repeat: reads and requests of each kind.

    Raises `InvalidInputError` for an unknown part, and for a context that the model can't hold.
    """
    if unknown := sorted(set(parts) - set(PARTS)):
        raise InvalidInputError(
            f"Unknown parts {', '.join(unknown)}; choose among {', '.join(PARTS)}."
        )
    kept_as = kv_format or format_of(model.dtype)
    with invented_store(model, context, kept_as) as store:
        result = where_and_when() | {
            **described(model),
            "context": len(encode(model.tokenizer, store.prompt).token_ids),
            "format": kept_as,
            "ratio": ratio,
            "gap_ms": gap_ms,
            "repeat": repeat,
        }
        if "load" in parts:
            result["load"] = measure_load(
                store.files, store.directory.paths(), repeat, partial(progress, "load")
            )
        if "lookup" in parts:
            lookups = max(100, min(records, LOOKUPS))
            result["lookup"] = measure_lookups(records, lookups, partial(progress, "lookup"))
        if "prefetch" in parts:
            step = partial(progress, "prefetch")
            result["rows"] = measure_prefetch(store, ratio, gap_ms, repeat, calibration, step)
    return result
