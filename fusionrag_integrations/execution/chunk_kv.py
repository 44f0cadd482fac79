"""Chunk + neighbours -> ChunkKV: the offline half of the method.

Isolated KV sees only the ingest prefix; fused KV also sees the neighbours (arXiv 2601.12904,
offline stage: similarity-guided preliminary cross-attention). The neighbours' tokens are not
recomputed: their isolated KV is moved into place.

positions:  0 ......... P ............. P+N ......... P+N+T
            | prefix KV | neighbours' KV | chunk, computed |

Behind each neighbour stands a separator, as chains put between chunks, computed with the chunk: its
first tokens look at what is right before them, and would be wrong in every prompt without.

Several chunks share a pass of the model, each behind its context.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from fusionrag_integrations.attention.attend import attend
from fusionrag_integrations.attention.rope import rotate
from fusionrag_integrations.attention.rows import Rows
from fusionrag_integrations.documents.chunk_record import ContextTrace
from fusionrag_integrations.documents.handles import KVKind
from fusionrag_integrations.execution.buffer import KVBuffer
from fusionrag_integrations.execution.executor import Executor, SequenceInput
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.execution.work import SequencesWork, Work, complete
from fusionrag_integrations.selectors.probe import LayerView
from fusionrag_integrations.store.kv.types import ChunkKV


@dataclass(frozen=True, slots=True, eq=False)
class Fusion:
    """A chunk to fuse.

    isolated: of the chunk. neighbours: isolated KV, at least one, in the order in which they stand
    before the chunk. key: the fused record's.
    """

    key: str
    isolated: ChunkKV
    neighbours: tuple[ChunkKV, ...]


def prefill_prefix(executor: Executor, token_ids: Sequence[int]) -> ChunkKV:
    """KV of the ingest prefix, which stands before every chunk. Its key is empty: not stored."""
    buffer = executor.new_buffer(len(token_ids))
    executor.run([SequenceInput(token_ids, range(len(token_ids)), buffer)])
    return _slice(executor.model, buffer, 0, "", "isolated", tuple(token_ids), ())


def prefill_chunks(
    executor: Executor, prefix: ChunkKV, chunks: Mapping[str, Sequence[int]]
) -> list[ChunkKV]:
    """Isolated KV: prefill chunks, each behind the prefix alone, in one pass.

    chunks: token ids by key. The KV is on the model's device, its keys in the canonical frame.
    """
    return complete(executor, prefill_chunks_work(executor, prefix, chunks))


def prefill_chunks_work(
    executor: Executor, prefix: ChunkKV, chunks: Mapping[str, Sequence[int]]
) -> Work[list[ChunkKV]]:
    """The same for passes that others share."""
    start = len(prefix.token_ids)
    model, buffers, inputs = executor.model, [], []
    for token_ids in chunks.values():
        stop = start + len(token_ids)
        buffer = executor.new_buffer(stop)
        place_at(model, buffer, prefix, 0)
        buffers.append(buffer)
        inputs.append(SequenceInput(token_ids, range(start, stop), buffer))
    return SequencesWork(
        inputs,
        lambda: [
            _slice(model, buffer, start, key, "isolated", tuple(token_ids), ())
            for buffer, (key, token_ids) in zip(buffers, chunks.items(), strict=True)
        ],
    )


def fuse_chunks(
    executor: Executor,
    prefix: ChunkKV,
    fusions: Sequence[Fusion],
    separator: Sequence[int] = (),
) -> list[tuple[ChunkKV, ContextTrace]]:
    """Fused KV: prefill chunks behind the prefix and their neighbours, and what that changed.

    separator: token ids behind each neighbour. In one pass. The KV is on the model's device, its
    keys in the canonical frame.
    """
    passes = [_FusedPass(executor, prefix, fusion, tuple(separator)) for fusion in fusions]
    if passes:
        executor.run([one.input for one in passes])
    return [one.result() for one in passes]


class _FusedPass:
    """One chunk's share of a pass: its context in place, then what came out."""

    def __init__(
        self, executor: Executor, prefix: ChunkKV, fusion: Fusion, separator: tuple[int, ...]
    ) -> None:
        self._model = model = executor.model
        self._fusion = fusion
        self._gap = len(separator)
        token_ids = fusion.isolated.token_ids
        starts, stop = [], len(prefix.token_ids)
        self._sizes = [stop]  # of the segments: the prefix, then each neighbour and what separates
        for kv in fusion.neighbours:
            starts.append(stop)
            self._sizes += [len(kv.token_ids), self._gap]
            stop += len(kv.token_ids) + self._gap
        self._start = stop
        chunk = range(stop, stop + len(token_ids))
        self._buffer = executor.new_buffer(chunk.stop)
        place_at(model, self._buffer, prefix, 0)
        gaps: list[int] = []
        for kv, start in zip(fusion.neighbours, starts, strict=True):
            place_at(model, self._buffer, kv, start)
            gaps += range(start + len(kv.token_ids), start + len(kv.token_ids) + self._gap)
        self._capture = _SegmentCapture(
            Rows.at(chunk, model.device), [*self._sizes, len(token_ids)], model.num_layers
        )
        ids = separator * len(fusion.neighbours) + token_ids
        self.input = SequenceInput(ids, [*gaps, *chunk], self._buffer, self._capture)

    def result(self) -> tuple[ChunkKV, ContextTrace]:
        """What the pass has computed."""
        isolated, names = self._fusion.isolated, tuple(kv.key for kv in self._fusion.neighbours)
        ids = isolated.token_ids
        fused = _slice(
            self._model, self._buffer, self._start, self._fusion.key, "fused", ids, names
        )
        given = self._capture.mean()
        to_neighbours = given[:, 1:-1:2]
        moved = deviation((fused.keys, fused.values), (isolated.keys, isolated.values))
        return fused, ContextTrace(
            sensitivity=tuple(moved.mean(0).tolist()),
            outside=tuple(to_neighbours.sum(1).tolist()),
            inside=tuple(given[:, -1].tolist()),
            neighbours=names,
            by_neighbour=tuple(to_neighbours.mean(0).tolist()),
            neighbour_tokens=sum(self._sizes[1::2]),
        )


class _SegmentCapture:
    """Adds up, over layers, the attention that a chunk's rows give to each segment they see.

    Attention to a segment is what attention makes of values that are 1 there and 0 elsewhere: one
    more pass of the same kernel, which never holds all weights.
    """

    def __init__(self, rows: Rows, sizes: Sequence[int], layers: int) -> None:
        self.layers = range(layers)
        self._rows = rows
        self._sizes = torch.tensor(sizes, device=rows.device)
        self._values: list[torch.Tensor] = []  # the same in all layers
        self._sums: list[torch.Tensor] = []

    def record(self, layer: int, view: LayerView) -> None:
        """Count one layer, mean over heads. The chunk's rows are a pass's last."""
        view = view.of_rows(slice(-len(self._rows), None))
        if not self._values:
            segments = torch.eye(len(self._sizes)).to(view.keys)
            columns = segments.repeat_interleave(self._sizes, dim=0)  # [N, segments]
            self._values = _as_values(columns, view.keys)
        parts = [
            attend(view.queries, view.keys, part, self._rows, view.spec) for part in self._values
        ]
        given = torch.cat(parts, dim=2)[:, :, : len(self._sizes)]
        self._sums.append(given.float().mean(0))

    def mean(self) -> torch.Tensor:
        """Attention by segment, mean over layers, float32 [R, segments]."""
        return torch.stack(self._sums).mean(0)


def _as_values(columns: torch.Tensor, keys: torch.Tensor) -> list[torch.Tensor]:
    """Columns [N, C] as values for all heads, as wide as the keys: [Hkv, N, D] each."""
    size = keys.shape[2]
    padded = pad(columns, (0, -columns.shape[1] % size))
    return [part.expand(keys.shape).contiguous() for part in torch.split(padded, size, dim=1)]


def deviation(
    kv: tuple[torch.Tensor, torch.Tensor], reference: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """Squared distance of each token's keys and values from others, float32 [L, T].

    Both: keys and values [L, Hkv, T, D]. Relative to the reference's mean squared size in each
    layer, which differs by orders of magnitude; mean over keys and values.
    """
    moved = []
    for tensor, other in zip(kv, reference, strict=True):
        old = other.to(tensor.device).float()
        size = old.square().sum((1, 3)).mean(1, keepdim=True)  # [L, 1]
        moved.append((tensor.float() - old).square().sum((1, 3)) / size)
    return torch.stack(moved).mean(0)


def place_at(model: CausalModel, buffer: KVBuffer, kv: ChunkKV, start: int) -> None:
    """Write `kv` from position `start` on. Changes the buffer, not the KV."""
    positions = range(start, start + len(kv.token_ids))
    buffer.place(start, kv.keys, kv.values, model.rotation(positions))


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
