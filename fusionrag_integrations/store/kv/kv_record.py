"""A KV record in memory, in its file's format. Its layers may not be read yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Condition
from time import perf_counter

import torch

from fusionrag_integrations.documents.handles import KVKind
from fusionrag_integrations.errors import KVRecordError
from fusionrag_integrations.store.kv.quantisation import dequantised
from fusionrag_integrations.store.kv.record_format import DENSE, RecordHeader
from fusionrag_integrations.store.kv.types import ChunkKV

DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U8": torch.uint8,
    "I32": torch.int32,
}


class LayerReadiness:
    """Which groups of layers have been read. The loader's threads report, others wait."""

    def __init__(self, groups: Sequence[range], waited: Callable[[float], None]) -> None:
        """groups: disjoint, of all layers. waited: called with the seconds that a wait took."""
        self._missing = set(groups)
        self._error: KVRecordError | None = None
        self._changed = Condition()
        self._waited = waited

    def mark_ready(self, group: range) -> None:
        """Report that these layers have been read."""
        with self._changed:
            self._missing.discard(group)
            self._changed.notify_all()

    def fail(self, error: KVRecordError) -> None:
        """Report that the missing layers can't be read. The first error causes the others."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def has(self, layers: range) -> bool:
        """Whether these layers have been read."""
        with self._changed:
            return not self._lacks(layers)

    def wait(self, layers: range) -> None:
        """Wait for these layers. Raises the reported error, as a new one each time."""
        with self._changed:
            if not self._lacks(layers):
                return
            started = perf_counter()
            self._changed.wait_for(lambda: self._error or not self._lacks(layers))
            lacking = self._lacks(layers)
        self._waited(perf_counter() - started)
        if lacking and self._error:
            raise type(self._error)(str(self._error)) from self._error

    def _lacks(self, layers: range) -> bool:
        return any(g.start < layers.stop and layers.start < g.stop for g in self._missing)


class KVRecord:
    """A record in memory: its tensors in the file's format, read-only, with unrotated keys."""

    rotated = False

    def __init__(
        self, header: RecordHeader, data: torch.Tensor, readiness: LayerReadiness | None = None
    ) -> None:
        """data: uint8 [header.data_bytes], all that follows the header in the file. Its token ids
        must have been read. readiness: of its layers; None where all have been.
        """
        self.header = header
        self._readiness = readiness
        self._data = data
        self._tensors = self._of(data)
        self.token_ids: tuple[int, ...] = tuple(self._tensors.pop("token_ids").tolist())

    @property
    def key(self) -> str:
        return self.header.key

    @property
    def kind(self) -> KVKind:
        return self.header.kind

    @property
    def neighbours(self) -> tuple[str, ...]:
        return self.header.neighbours

    @property
    def data(self) -> memoryview:
        """The tensors' bytes, as in the file, which the loader fills."""
        return self._data.numpy().data

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors take."""
        return self.header.data_bytes

    def ready(self, layers: slice = slice(None)) -> bool:
        """Whether these layers have been read."""
        return self._readiness is None or self._readiness.has(self._range(layers))

    def wait(self) -> None:
        """Wait for all layers. Raises `KVRecordError` where they can't be read."""
        if self._readiness is not None:
            self._readiness.wait(self._range(slice(None)))

    def tensors(self, layers: slice, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [layers, Hkv, T, D] on a device, after waiting for them.

        In the store's dtype, or float32 if quantised. Raises `KVRecordError` where they can't be
        read.
        """
        if self._readiness is not None:
            self._readiness.wait(self._range(layers))
        if self._range(layers) == self._range(slice(None)):
            moved = self._of(self._data.to(device, non_blocking=True))
        else:
            moved = {
                name: tensor[layers].to(device, non_blocking=True)
                for name, tensor in self._tensors.items()
            }
        if self.header.kv_format in DENSE:
            return moved["keys"], moved["values"]
        return dequantised(self.header.kv_format, moved)

    def dense(self) -> ChunkKV:
        """The record as plain tensors on the CPU, as `tensors` gives them."""
        keys, values = self.tensors(slice(None), torch.device("cpu"))
        return ChunkKV(self.key, self.kind, self.token_ids, keys, values, self.neighbours)

    def _of(self, data: torch.Tensor) -> dict[str, torch.Tensor]:
        """The record's tensors, as views of data, by name."""
        return {
            name: data[entry.start : entry.stop].view(DTYPES[entry.dtype]).view(entry.shape)
            for name, entry in self.header.entries.items()
        }

    def _range(self, layers: slice) -> range:
        return range(*layers.indices(self.header.shape[0]))
