"""What a look-up has found, so that the replica that the next prompt goes to can expect it."""

from __future__ import annotations

import json
from dataclasses import dataclass

from fusionrag_integrations.documents.handles import KVHandle


@dataclass(frozen=True, slots=True)
class Found:
    """handles: of chunks, in the order of the next prompt. needed: keys of the KV that it reads,
    with the length of each chunk. unknown: texts of no chunk.
    """

    handles: tuple[KVHandle, ...]
    needed: dict[str, int]
    unknown: tuple[str, ...]

    @classmethod
    def of(cls, asked: bytes, replied: bytes) -> Found:
        """Of a request to `/v1/retrieve` that was answered, by the bodies of both."""
        rows = json.loads(replied)["data"]
        texts = json.loads(asked).get("texts") or rows
        found = [
            (text["text"], KVHandle(**row["handle"]))
            for text, row in zip(texts, rows, strict=True)
            if row["handle"] is not None
        ]
        unknown = [
            text["text"] for text, row in zip(texts, rows, strict=True) if row["handle"] is None
        ]
        return cls(
            tuple(handle for _, handle in found),
            {
                (handle.fused_key if number else "") or handle.isolated_key: len(text)
                for number, (text, handle) in enumerate(found)
            },
            tuple(unknown),
        )
