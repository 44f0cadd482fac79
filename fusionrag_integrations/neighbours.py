"""Which chunks stand before a chunk when its KV is fused."""

from __future__ import annotations

from collections.abc import Sequence

from fusionrag_integrations.types import ChunkRecord

MAX_NEIGHBOURS = 10  # the paper's n; it reports that 15 already hurts
MAX_PREDECESSORS = 2
MAX_NEIGHBOUR_TOKENS = 4_096


def choose_neighbours(
    record: ChunkRecord,
    predecessors: Sequence[ChunkRecord],
    similar: Sequence[ChunkRecord],
    max_tokens: int,
) -> list[ChunkRecord]:
    """The neighbours of a chunk, in the order in which they stand before it.

    predecessors: of the same document, in document order; the last `MAX_PREDECESSORS` count,
    and stand last, because what a chunk refers back to is there. similar: nearest first; they
    fill what is left of `MAX_NEIGHBOURS`, the nearest closest to the chunk. Equal texts count
    once. Neighbours beyond `max_tokens` in all are left out, the least similar first.
    """
    taken = {record.chunk.text}
    room = max_tokens
    kept: list[ChunkRecord] = []  # most wanted first
    for candidate in [*reversed(predecessors[-MAX_PREDECESSORS:]), *similar]:
        tokens = len(candidate.encoded.token_ids)
        if candidate.chunk.text in taken or tokens > room or len(kept) == MAX_NEIGHBOURS:
            continue
        taken.add(candidate.chunk.text)
        room -= tokens
        kept.append(candidate)
    return kept[::-1]
