"""KV of a record as its file has it, in memory. Layers may still be on their way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Condition
from time import perf_counter

import torch

from fusionrag_integrations.errors import KVRecordError
from fusionrag_integrations.records.layout import DENSE, RecordHeader
from fusionrag_integrations.store.compact import dequantised
from fusionrag_integrations.types import ChunkKV, KVKind

DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U8": torch.uint8,
    "I32": torch.int32,
}


class Arrivals:
    """Which groups of layers have come. One thread reports, others wait."""

    def __init__(self, groups: Sequence[range], waited: Callable[[float], None]) -> None:
        """groups: apart, ascending, all layers. waited: told the seconds that a wait took."""
        self._missing = set(groups)
        self._error: KVRecordError | None = None
        self._changed = Condition()
        self._waited = waited

    def come(self, group: range) -> None:
        """These layers are there."""
        with self._changed:
            self._missing.discard(group)
            self._changed.notify_all()

    def fail(self, error: KVRecordError) -> None:
        """The layers that are missing won't come. The first reason stays: others follow from it."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def have(self, layers: range) -> bool:
        """Whether these layers are there."""
        with self._changed:
            return not self._lacks(layers)

    def wait(self, layers: range) -> None:
        """Wait for these layers. Raises what hinders them from coming, a new error each time."""
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


class StoredKV:
    """A record in memory: its tensors in the file's own format, read-only.

    Keys stand in the canonical frame. `data` is what the file holds behind its header.
    """

    rotated = False

    def __init__(
        self, header: RecordHeader, data: torch.Tensor, arrivals: Arrivals | None = None
    ) -> None:
        """data: uint8 [header.data_bytes], whose token ids are there. arrivals: of the layers."""
        self._header = header
        self._arrivals = arrivals
        self._data = data
        self._tensors = self._of(data)
        self.token_ids: tuple[int, ...] = tuple(self._tensors.pop("token_ids").tolist())

    @property
    def key(self) -> str:
        return self._header.key

    @property
    def kind(self) -> KVKind:
        return self._header.kind

    @property
    def neighbours(self) -> tuple[str, ...]:
        return self._header.neighbours

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors take."""
        return self._header.data_bytes

    def ready(self, layers: slice = slice(None)) -> bool:
        """Whether `tensors` won't have to wait for these layers."""
        return self._arrivals is None or self._arrivals.have(self._range(layers))

    def wait(self) -> None:
        """Wait for all layers. Raises `KVRecordError` where they can't come."""
        if self._arrivals is not None:
            self._arrivals.wait(self._range(slice(None)))

    def tensors(self, layers: slice, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [layers, Hkv, T, D] on a device, once they have come.

        In the store's dtype, of compact formats in float32. Raises `KVRecordError` where they
        can't come.
        """
        if self._arrivals is not None:
            self._arrivals.wait(self._range(layers))
        if self._range(layers) == self._range(slice(None)):
            moved = self._of(self._data.to(device, non_blocking=True))
        else:
            moved = {
                name: tensor[layers].to(device, non_blocking=True)
                for name, tensor in self._tensors.items()
            }
        if self._header.kv_format in DENSE:
            return moved["keys"], moved["values"]
        return dequantised(self._header.kv_format, moved)

    def dense(self) -> ChunkKV:
        """The record as plain tensors on the CPU, as `tensors` gives them."""
        keys, values = self.tensors(slice(None), torch.device("cpu"))
        return ChunkKV(self.key, self.kind, self.token_ids, keys, values, self.neighbours)

    def _of(self, data: torch.Tensor) -> dict[str, torch.Tensor]:
        """The record's tensors in what its file holds behind its header, by their names."""
        return {
            name: data[entry.start : entry.stop].view(DTYPES[entry.dtype]).view(entry.shape)
            for name, entry in self._header.entries.items()
        }

    def _range(self, layers: slice) -> range:
        return range(*layers.indices(self._header.shape[0]))
