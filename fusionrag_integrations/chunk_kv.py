"""Chunk + neighbours -> ChunkKV: the offline half of the method.

Isolated KV sees only the ingest prefix; fused KV also sees the neighbours (arXiv 2601.12904,
offline stage: similarity-guided preliminary cross-attention). The neighbours' own tokens are
not recomputed: their isolated KV is moved into place.

positions:  0 ......... P ............. P+N ......... P+N+T
            | prefix KV | neighbours' KV | chunk, computed |
"""

from __future__ import annotations

from collections.abc import Sequence

from fusionrag_integrations.model import CausalModel, KVBuffer
from fusionrag_integrations.rope import rotate
from fusionrag_integrations.types import ChunkKV, KVKind


def prefill_prefix(model: CausalModel, token_ids: Sequence[int]) -> ChunkKV:
    """KV of the ingest prefix, which stands before every chunk. Its key is empty: not stored."""
    buffer = model.new_buffer(len(token_ids))
    model.forward_rows(token_ids, range(len(token_ids)), buffer)
    return _slice(model, buffer, 0, "", "isolated", tuple(token_ids), ())


def prefill_chunk(
    model: CausalModel,
    prefix: ChunkKV,
    token_ids: Sequence[int],
    *,
    key: str,
    neighbours: Sequence[ChunkKV] = (),
) -> ChunkKV:
    """Prefill one chunk behind the prefix and its neighbours; fused where it has neighbours.

    neighbours: isolated KV, in the order in which they stand before the chunk. The result lies
    on the model's device, its keys in the canonical frame.
    """
    before = [prefix, *neighbours]
    start = sum(len(kv.token_ids) for kv in before)
    buffer = model.new_buffer(start + len(token_ids))
    place_consecutively(model, buffer, before)
    model.forward_rows(token_ids, range(start, start + len(token_ids)), buffer)
    kind: KVKind = "fused" if neighbours else "isolated"
    return _slice(
        model, buffer, start, key, kind, tuple(token_ids), tuple(kv.key for kv in neighbours)
    )


def place_consecutively(model: CausalModel, buffer: KVBuffer, kvs: Sequence[ChunkKV]) -> None:
    """Write `kvs` one behind another from position 0 on. Changes the buffer, not the KV."""
    start = 0
    for kv in kvs:
        stop = start + len(kv.token_ids)
        buffer.place(start, kv.keys, kv.values, model.rotation(range(start, stop)))
        start = stop


def _slice(
    model: CausalModel,
    buffer: KVBuffer,
    start: int,
    key: str,
    kind: KVKind,
    token_ids: tuple[int, ...],
    neighbours: tuple[str, ...],
) -> ChunkKV:
    stop = start + len(token_ids)
    back = model.rotation(range(start, stop)).inverse()
    return ChunkKV(
        key=key,
        kind=kind,
        token_ids=token_ids,
        keys=rotate(buffer.keys[:, :, start:stop], back),
        values=buffer.values[:, :, start:stop].clone(),
        neighbours=neighbours,
    )
