"""Keys and values of one chunk, as tensors.

Axes: L layers, Hkv key/value heads, T tokens of the chunk, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from fusionrag_integrations.documents.handles import KVKind
from fusionrag_integrations.errors import InvalidInputError

if TYPE_CHECKING:
    import torch


KVFormat = Literal["float32", "float16", "bfloat16", "int8", "int4"]
KeptKV = Literal["fused", "none"]
"""What a store keeps of its chunks: fused KV, with the isolated KV that it is made of; or none."""


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class ChunkKV:
    """Keys and values of one chunk, never modified.

    keys, values: [L, Hkv, T, D], same dtype, on any device. Keys are unrotated: as if each token
    were at position 0, so that they can be rotated to any position. Those of `rotated` KV are
    rotated to the tokens' positions in the chunk, 0, 1, ..., and can be attended to in place.
    neighbours: the isolated keys of the chunks that precede this one, in order.
    """

    key: str
    kind: KVKind
    token_ids: tuple[int, ...]
    keys: torch.Tensor
    values: torch.Tensor
    neighbours: tuple[str, ...] = ()
    rotated: bool = False

    def __post_init__(self) -> None:
        shape = tuple(self.keys.shape)
        if len(shape) != 4 or shape != tuple(self.values.shape):
            raise InvalidInputError(
                f"Keys and values must both be [L, Hkv, T, D]; got {shape} "
                f"and {tuple(self.values.shape)}."
            )
        if shape[2] != len(self.token_ids):
            raise InvalidInputError(
                f"KV of {shape[2]} tokens was given {len(self.token_ids)} token ids."
            )

    def ready(self, layers: slice = slice(None)) -> bool:
        """Whether these layers are ready: always."""
        return True

    def wait(self) -> None:
        """Returns at once: all layers are ready."""

    def tensors(self, layers: slice, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of some layers on a device."""
        keys, values = self.keys[layers], self.values[layers]
        return keys.to(device, non_blocking=True), values.to(device, non_blocking=True)


class LayeredKV(Protocol):
    """KV of a chunk whose layers become ready one after another, or are, as `ChunkKV`'s."""

    @property
    def key(self) -> str: ...

    @property
    def kind(self) -> KVKind: ...

    @property
    def token_ids(self) -> tuple[int, ...]: ...

    @property
    def rotated(self) -> bool: ...

    def ready(self, layers: slice = slice(None)) -> bool:
        """Whether these layers are ready."""

    def wait(self) -> None:
        """Wait for all layers. Raises `KVRecordError` where they can't be read."""

    def tensors(self, layers: slice, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [layers, Hkv, T, D] on a device, of any dtype; don't modify them.

        Waits until the layers are ready. Raises `KVRecordError` where they can't be read.
        """
