"""Move keys between positions.

Rotary embeddings rotate each pair of key dimensions by an angle proportional to the position, so
a key leaves its position by the inverse rotation and takes another by the forward one. Stored keys
stand at position 0, where nothing is rotated. Everything happens in float32: rotating rounded keys
there and back in bf16 loses precision each time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

ApplyRotary = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]
]


@dataclass(frozen=True, slots=True, eq=False)
class Rotation:
    """The rotation from position 0 to some positions.

    cos, sin: float32 [L or 1, T, R], without the model's attention scaling, which keys carry
    already. `apply` is the model's own `apply_rotary_pos_emb`, so that partial and interleaved
    layouts are exactly the model's.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    apply: ApplyRotary

    def at(self, rows: slice) -> Rotation:
        """The rotation to some of the positions."""
        return Rotation(self.cos[:, rows], self.sin[:, rows], self.apply)

    def of_layers(self, layers: slice) -> Rotation:
        """The rotation in some of the layers."""
        if self.cos.shape[0] == 1:  # the same in all of them
            return self
        return Rotation(self.cos[layers], self.sin[layers], self.apply)

    def inverse(self) -> Rotation:
        """The rotation back to position 0."""
        return Rotation(self.cos, -self.sin, self.apply)


@dataclass(frozen=True, slots=True, eq=False)
class RotaryTable:
    """Rotations in a form that needs no code of the model's.

    x'[d] = cos[d] x[d] + sin[d] x[other[d]]

    cos, sin: float32 [L or 1, S, D] for S rotations, signs in `sin`; other: int32 [D], the
    dimension that each is paired with, itself where it isn't rotated.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    other: torch.Tensor

    @classmethod
    def of(cls, rotation: Rotation, size: int) -> RotaryTable:
        """The rotations to its positions, for heads of `size`."""
        device, dtype = rotation.cos.device, rotation.cos.dtype
        quarter = Rotation(
            torch.zeros_like(rotation.cos[:1, :1]),
            torch.ones_like(rotation.sin[:1, :1]),
            rotation.apply,
        )
        pairs = rotate(torch.eye(size, device=device, dtype=dtype)[None, None], quarter)[0, 0]
        shape = len(rotation.cos), 1, rotation.cos.shape[1], size
        ones = torch.ones(shape, device=device, dtype=dtype)
        forth, back = (rotate(ones, to)[:, 0] for to in (rotation, rotation.inverse()))
        other = pairs.abs().argmax(0).to(torch.int32)
        return cls((forth + back) / 2, (forth - back) / 2, other)

    def layer(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin [S, D] of one layer."""
        at = layer if len(self.cos) > 1 else 0
        return self.cos[at], self.sin[at]


def rotate(keys: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Rotate keys [L, Hkv, T, D]; returns a new tensor of the same shape and dtype."""
    wide = keys.float()
    no_queries = wide[:, :0]  # the model's function rotates queries too; give it none
    _, rotated = rotation.apply(no_queries, wide, rotation.cos, rotation.sin)
    return rotated.to(keys.dtype)
