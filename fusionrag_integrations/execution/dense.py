"""Full attention: the model's own dense prefill, by transformers' own call and cache.

So it is what users would have without this package. A long prompt is computed in pieces, each a
call that goes on from the same cache; at the end the KV moves to a buffer, for decode is shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from transformers import DynamicCache

from fusionrag_integrations.execution.executor import DenseInput, Executor
from fusionrag_integrations.execution.recompute import PrefillOutput


class DensePrefill:
    """The work of a prompt under full attention. See `Work`."""

    def __init__(self, executor: Executor, token_ids: Sequence[int], capacity: int) -> None:
        """capacity: how many tokens the prompt and its answer may have."""
        self._executor = executor
        self._token_ids = token_ids
        self._capacity = capacity
        self._cache = DynamicCache(config=executor.model.hf.config)
        self._taken = 0
        self._logits = torch.empty(0)

    @property
    def left(self) -> int:
        return len(self._token_ids) - self._taken

    def take(self, most: int) -> list[DenseInput]:
        start = self._taken
        self._taken = min(start + max(1, most), len(self._token_ids))
        return [DenseInput(self._token_ids[start : self._taken], self._cache)]

    def give(self, outputs: Sequence[torch.Tensor]) -> None:
        self._logits = outputs[-1]

    @cached_property
    @torch.inference_mode()
    def result(self) -> PrefillOutput:
        buffer = self._executor.new_buffer(self._capacity)
        stop = len(self._token_ids)
        layout = self._executor.model.layout
        for layer, own in enumerate(self._cache.layers):
            if own.keys is None:  # it attends to another's
                continue
            kept = layout.keep(own.keys[0], own.values[0])
            for slots, kv in zip(buffer.layer(layout.shape.sources[layer]), kept, strict=True):
                slots[:, stop - kv.shape[1] : stop] = kv  # a window's layer keeps the last ones
        self._cache = DynamicCache()  # its memory is free
        return PrefillOutput(self._logits, buffer)
