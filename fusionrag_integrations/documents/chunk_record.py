"""A chunk with its tokens, the keys of its KV, and its context trace."""

from __future__ import annotations

from dataclasses import dataclass

from fusionrag_integrations.documents.handles import KVHandle
from fusionrag_integrations.documents.types import Chunk
from fusionrag_integrations.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class EncodedChunk:
    """A chunk in the model's tokens. `offsets[i]` are token i's start and end in the text."""

    chunk: Chunk
    token_ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        if len(self.token_ids) != len(self.offsets):
            raise InvalidInputError(
                f"Chunk {self.chunk.id!r} has {len(self.token_ids)} tokens "
                f"but {len(self.offsets)} offsets."
            )


@dataclass(frozen=True, slots=True)
class ContextTrace:
    """How a chunk's tokens depended on the neighbours when its KV was fused. Numbers, no content.

    sensitivity: by how much each token's KV moved away from its isolated KV, squared and relative
    to the chunk's own size, mean over layers; 0 for a token that its context doesn't change.
    outside, inside: each token's attention to the neighbours and to its own chunk, mean over
    layers and heads; the rest, up to 1, went to the ingest prefix.
    neighbours, by_neighbour: their isolated keys, in order, and the attention that each got,
    mean over tokens. neighbour_tokens: how many tokens they had in all.
    """

    sensitivity: tuple[float, ...]
    outside: tuple[float, ...]
    inside: tuple[float, ...]
    neighbours: tuple[str, ...]
    by_neighbour: tuple[float, ...]
    neighbour_tokens: int

    def __post_init__(self) -> None:
        if not len(self.sensitivity) == len(self.outside) == len(self.inside):
            raise InvalidInputError("A trace needs as many numbers of each kind as tokens.")
        if len(self.neighbours) != len(self.by_neighbour):
            raise InvalidInputError("A trace needs one number for each neighbour.")


@dataclass(frozen=True, slots=True)
class ChunkRecord:
    """What the catalog knows of a chunk: its tokens and the keys of its KV.

    `fused_key` is empty while there is no fused KV that is up to date. `trace` is of the last time
    that it was fused, and is kept when that KV is deleted. captured: whether it is an ad-hoc chunk,
    kept from a request and in no ingested document.
    """

    encoded: EncodedChunk
    isolated_key: str
    fused_key: str = ""
    trace: ContextTrace | None = None
    captured: bool = False

    @property
    def chunk(self) -> Chunk:
        return self.encoded.chunk

    @property
    def handle(self) -> KVHandle:
        return KVHandle(self.chunk.id, self.isolated_key, self.fused_key)
