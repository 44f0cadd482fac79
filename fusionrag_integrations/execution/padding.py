"""Rows that stand for nobody, so that a step has as many as its graph was made for."""

from __future__ import annotations

import torch

from fusionrag_integrations.attention.rope import RotaryTable
from fusionrag_integrations.attention.rows import Rows
from fusionrag_integrations.attention.segments import Segment, Segments
from fusionrag_integrations.execution.buffer import BufferRows, KVBuffer
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.execution.in_place import InPlaceKV, InPlaceRows
from fusionrag_integrations.execution.rows_kv import RowsKV


class Padding:
    """One row of KV of each kind, zeros, which all padding shares."""

    def __init__(self, model: CausalModel) -> None:
        self._model = model
        self._made: dict[type, RowsKV] = {}

    def of(self, kind: type) -> RowsKV:
        """Of the same kind as rows of that type."""
        if kind not in self._made:
            self._made[kind] = self._in_place() if kind is InPlaceRows else self._in_buffer()
        return self._made[kind]

    def _in_buffer(self) -> BufferRows:
        return BufferRows(KVBuffer(self._zeros(), self._zeros()), Rows.at((0,), self._model.device))

    def _in_place(self) -> InPlaceRows:
        """A chunk of one token, and the row behind it."""
        rotations = RotaryTable.of(self._model.rotation([0]), self._model.head_dim)
        segments = Segments([Segment(self._zeros(), self._zeros(), 0, 0, 1)], rotations)
        kv = InPlaceKV(segments, [1], self._zeros(), self._zeros())
        return kv.over(Rows.at((1,), self._model.device))

    def _zeros(self) -> torch.Tensor:
        model = self._model
        shape = model.kv_layers, model.num_kv_heads, 1, model.head_dim
        return torch.zeros(shape, dtype=model.dtype, device=model.device)
