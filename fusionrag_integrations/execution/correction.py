"""What stored KV is off by at each index in its chunk, on average; added when it is placed.

A chunk is prefilled behind the ingest prefix and its neighbours, and stands behind other chunks in
a prompt. Much of what that changes is the same for all chunks at the same index: the first tokens
look at what is right before them, and all look at how much text there is. Its mean over chunks is
measured at ingest (`calibrate`), on prompts of the store's own chunks, and costs an addition.

stored KV + correction[index in the chunk] --rotate--> placed KV
"""

from __future__ import annotations

import torch

from fusionrag_integrations.documents.handles import KVKind
from fusionrag_integrations.store.corrections import INDICES, Correction
from fusionrag_integrations.store.kv.types import LayeredKV


class CorrectedKV:
    """A chunk's KV with a correction added. The KV stays as it is, and is read when this is."""

    rotated = False

    def __init__(self, kv: LayeredKV, correction: Correction) -> None:
        """kv: in the canonical frame, of the correction's model."""
        self._kv = kv
        self._correction = correction

    @property
    def key(self) -> str:
        return self._kv.key

    @property
    def kind(self) -> KVKind:
        return self._kv.kind

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self._kv.token_ids

    def ready(self, layers: slice = slice(None)) -> bool:
        """Whether these layers are there."""
        return self._kv.ready(layers)

    def wait(self) -> None:
        """Wait for all layers. Raises `KVRecordError` where they can't come."""
        self._kv.wait()

    def tensors(self, layers: slice, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [layers, Hkv, T, D] on a device, in the KV's own dtype.

        Raises `KVRecordError` where they can't come.
        """
        stored = self._kv.tensors(layers, device)
        means = (self._correction.keys[layers], self._correction.values[layers])
        keys, values = (
            _added(tensor, mean.to(device, non_blocking=True))
            for tensor, mean in zip(stored, means, strict=True)
        )
        return keys, values


def _added(stored: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
    """stored: [layers, Hkv, T, D]. means: [layers, Hkv, INDICES, D]."""
    corrected = stored.float() + means[:, :, -1:]
    head = min(INDICES - 1, stored.shape[2])
    corrected[:, :, :head] = stored[:, :, :head] + means[:, :, :head]
    return corrected.to(stored.dtype)
