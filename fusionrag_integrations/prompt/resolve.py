"""Which chunk a found text is, where several have the same text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from fusionrag_integrations.documents.chunk_record import ChunkRecord
from fusionrag_integrations.documents.handles import KVHandle, KVKind
from fusionrag_integrations.prompt.assembled import TextMatch
from fusionrag_integrations.prompt.found import FoundText, indentation


def resolve(found: Sequence[FoundText], handles: Sequence[KVHandle]) -> list[TextMatch]:
    """Decide which chunk each found text is.

    The i-th occurrence of a text is the i-th handle that names one of its chunks; else the only
    chunk with that text; else the chunk that follows, in its document, the one found before it, if
    it is certain which that is. Otherwise, and where the prompt cuts the text short, so that other
    chunks may begin alike, any of them is taken, isolated: isolated KV is the same for all.
    """
    records = {record.chunk.id: record for text in found for record in text.records}
    waiting: dict[str, list[ChunkRecord]] = defaultdict(list)
    for handle in handles:
        if record := records.get(handle.chunk_id):
            waiting[record.chunk.text].append(record)
    matches: list[TextMatch] = []
    certain = False  # whether it is known which chunk the last one is
    for text in found:
        candidates = text.records
        named = waiting[candidates[0].chunk.text]
        previous = matches[-1].record if matches else None
        if not text.complete:
            record, certain = candidates[0], False
        elif named:
            record, certain = named.pop(0), True
        elif len(candidates) == 1:
            record, certain = candidates[0], True
        elif certain and (followers := [c for c in candidates if _follows(c, previous)]):
            record = followers[0]
        else:
            record, certain = candidates[0], False
        variant: KVKind = "fused" if certain else "isolated"
        start = text.start - indentation(record)
        matches.append(TextMatch(record, start, text.stop, variant))
    return matches


def _follows(record: ChunkRecord, previous: ChunkRecord | None) -> bool:
    return (
        previous is not None
        and previous.chunk.document == record.chunk.document
        and previous.chunk.index + 1 == record.chunk.index
    )
