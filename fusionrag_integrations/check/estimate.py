"""Documents -> what ingesting them would take, without a store.

Bytes follow from the file format and the length of each chunk. Time is extrapolated by tokens from
some chunks that are prefilled and fused here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from functools import cache

import torch

from fusionrag_integrations.check.pace import KEY, Sample, measure_pace, neighbour_tokens
from fusionrag_integrations.check.report import Estimate
from fusionrag_integrations.documents.chunk_record import ChunkRecord
from fusionrag_integrations.documents.chunking import Chunker
from fusionrag_integrations.documents.handles import KVKind
from fusionrag_integrations.documents.keys import isolated_key
from fusionrag_integrations.documents.types import Document
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.execution.executor import Executor
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.ingest.neighbours import DEFAULT_NEIGHBOURS
from fusionrag_integrations.prompt import encode_chunk
from fusionrag_integrations.store.kv.record_format import RecordHeader
from fusionrag_integrations.store.kv.types import KVFormat
from fusionrag_integrations.support.inputs import holds_several, shown
from fusionrag_integrations.support.progress import Progress


@dataclass(frozen=True, slots=True)
class _Size:
    """What is held of each chunk, since there may be millions."""

    scope: str
    key: str
    tokens: int


def estimate_ingest(
    model: CausalModel,
    documents: Iterable[Document],
    chunk_tokens: int,
    kv_format: KVFormat,
    progress: Progress,
) -> Estimate:
    """What ingesting the documents into a new store would take; nothing is written.

    Raises `InvalidInputError` for anything but documents, and if they hold no text.
    """
    if not holds_several(documents):
        raise _no_documents(documents)
    chunker = Chunker(chunk_tokens)
    total = len(documents) if isinstance(documents, Sized) else None
    sizes: list[_Size] = []
    sample = Sample()
    count = 0
    for count, document in enumerate(documents, start=1):
        if not isinstance(document, Document):
            raise _no_documents(document)
        for chunk in chunker.split(document):
            encoded = encode_chunk(model.tokenizer, chunk)
            key = isolated_key(encoded.token_ids, "", chunk.scope)
            sizes.append(_Size(chunk.scope, key, len(encoded.token_ids)))
            sample.add(ChunkRecord(encoded, key))
        progress("read", count, total or count)
    if not sizes:
        raise InvalidInputError("The documents hold no text: there is nothing to estimate.")
    isolated = list({size.key: size for size in sizes}.values())  # equal texts share a record
    fused = list(_fused(model, sizes, isolated))
    pace = measure_pace(Executor(model), sample.records, progress)
    file_bytes = _file_bytes(model, kv_format)
    return Estimate(
        documents=count,
        chunks=len(sizes),
        tokens=sum(size.tokens for size in sizes),
        kv_format=kv_format,
        bytes=sum(file_bytes("isolated", size.tokens, 0) for size in isolated)
        + sum(file_bytes("fused", size.tokens, neighbours) for size, neighbours in fused),
        seconds=pace.isolated * sum(size.tokens for size in isolated)
        + pace.fused * sum(size.tokens for size, _ in fused),
    )


def _no_documents(given: object) -> InvalidInputError:
    return InvalidInputError(
        f"An estimate is of this package's Documents, in a list; got {shown(given)}."
    )


def _fused(
    model: CausalModel, sizes: Sequence[_Size], isolated: Sequence[_Size]
) -> Iterator[tuple[_Size, int]]:
    """The chunks that will have neighbours, and approximately how many."""
    texts = Counter(size.scope for size in isolated)
    tokens: Counter[str] = Counter()
    for size in isolated:
        tokens[size.scope] += size.tokens
    for size in sizes:
        fitting = neighbour_tokens(model) * texts[size.scope] // tokens[size.scope]
        if neighbours := min(DEFAULT_NEIGHBOURS.count, texts[size.scope] - 1, fitting):
            yield size, neighbours


def _file_bytes(model: CausalModel, kv_format: KVFormat) -> Callable[[KVKind, int, int], int]:
    """A function from the kind, tokens and neighbours of a chunk to the bytes of its file."""
    half = "BF16" if model.dtype == torch.bfloat16 else "F16"

    @cache  # chunks are of few lengths
    def file_bytes(kind: KVKind, tokens: int, neighbours: int) -> int:
        shape = (model.kv_layers, model.num_kv_heads, tokens, model.head_dim)
        return RecordHeader(KEY, kind, (KEY,) * neighbours, KEY, kv_format, shape, half).file_bytes

    return file_bytes
