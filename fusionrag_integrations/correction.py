"""What stored KV is off by at each index in its chunk, on average; added when it is placed.

A chunk is prefilled behind the ingest prefix and its neighbours, and stands behind other chunks in
a prompt. Much of what that changes is the same for all chunks at the same index: the first tokens
look at what is right before them, and all look at how much text there is. Its mean over chunks is
measured at ingest (`calibrate`), on prompts of the store's own chunks, and costs an addition.

stored KV + correction[index in the chunk] --rotate--> placed KV
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.types import KVKind, LayeredKV

INDICES = 32
"""Indices that have a mean of their own; the last one's stands for all further tokens."""
FEWEST_CHUNKS = 16
"""Of a scope, with fused KV: means over fewer say nothing of the others."""


@dataclass(frozen=True, slots=True, eq=False)
class Correction:
    """keys, values: float32 [L, Hkv, INDICES, D], of keys in the canonical frame."""

    keys: torch.Tensor
    values: torch.Tensor

    def __post_init__(self) -> None:
        shape = tuple(self.keys.shape)
        if len(shape) != 4 or shape[2] != INDICES or shape != tuple(self.values.shape):
            raise InvalidInputError(
                f"A correction's keys and values must both be [L, Hkv, {INDICES}, D]; got {shape} "
                f"and {tuple(self.values.shape)}."
            )


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


@dataclass(frozen=True, slots=True, eq=False)
class Deviations:
    """How far stored KV was off, added up by index in the chunk: of keys, then of values.

    count: float32 [INDICES]. sums: float32 [L, Hkv, INDICES, D] each. squares: of their squared
    lengths, float32 [L, Hkv, INDICES] each.
    """

    count: torch.Tensor
    sums: tuple[torch.Tensor, torch.Tensor]
    squares: tuple[torch.Tensor, torch.Tensor]

    @classmethod
    def of(
        cls,
        stored: tuple[torch.Tensor, torch.Tensor],
        true: tuple[torch.Tensor, torch.Tensor],
        indices: torch.Tensor,
    ) -> Deviations:
        """Of some of a chunk's tokens.

        stored, true: keys in the canonical frame and values, [L, Hkv, T, D]. indices: int64 [T],
        where the tokens stand in their chunk.
        """
        at = indices.clamp(max=INDICES - 1)
        count = torch.bincount(at, minlength=INDICES).float()
        sums, squares = [], []
        for old, new in zip(stored, true, strict=True):
            off = (new.float() - old.float()).cpu()
            layers, heads, _, size = off.shape
            none = off.new_zeros(layers, heads, INDICES, size)
            sums.append(none.index_add(2, at, off))
            squares.append(none[..., 0].index_add(2, at, off.square().sum(3)))
        return cls(count, (sums[0], sums[1]), (squares[0], squares[1]))

    def __add__(self, other: Deviations) -> Deviations:
        keys, values = (a + b for a, b in zip(self.sums, other.sums, strict=True))
        of_keys, of_values = (a + b for a, b in zip(self.squares, other.squares, strict=True))
        return Deviations(self.count + other.count, (keys, values), (of_keys, of_values))

    def mean(self) -> Correction:
        """The means, each drawn towards 0 as far as it may be chance (James and Stein, 1961)."""
        count = self.count.clamp(min=1.0)
        keys, values = (
            _shrunk(total / count[:, None], squares / count, count)
            for total, squares in zip(self.sums, self.squares, strict=True)
        )
        return Correction(keys, values)


def _shrunk(means: torch.Tensor, squares: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """means: [L, Hkv, I, D]. squares: mean squared lengths, [L, Hkv, I]. count: [I]."""
    length = means.square().sum(3)
    chance = (squares - length).clamp(min=0.0) / count
    return means * (1.0 - chance / length.clamp(min=1e-30)).clamp(min=0.0)[..., None]
