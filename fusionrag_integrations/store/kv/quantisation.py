"""Keys and values in 8 or 4 bits, and back.

Each number becomes a step between the least and the greatest of its group: zero + scale * step.
Keys vary by channel, so groups of keys span tokens of one channel; values vary by token, so groups
of values span channels of one token (KIVI, arXiv 2402.02750). Keys are unrotated, since rotation
mixes channels. A chunk's first tokens, which get much attention, stay in 16 bits.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.store.kv.record_format import first_tokens, key_group, value_group
from fusionrag_integrations.store.kv.types import KVFormat

_LEVELS = {"int8": 255, "int4": 15}
_GREATEST = torch.finfo(torch.float16).max


def quantised(
    kv_format: KVFormat, keys: torch.Tensor, values: torch.Tensor, half: torch.dtype
) -> dict[str, torch.Tensor]:
    """The tensors of a quantised format, by name.

    keys, values: [L, Hkv, T, D]. half: the dtype of first tokens. Raises `InvalidInputError` for
    numbers that 16 bits can't hold, and in 4 bits for an odd D.
    """
    keys, values = keys.float(), values.float()
    if not all((kv.abs() <= _GREATEST).all() for kv in (keys, values)):
        raise InvalidInputError(
            f"KV beyond {_GREATEST:.0f}, or not a number, can't be kept as {kv_format}; make a "
            "store with kv_format='float32'."
        )
    if kv_format == "int4" and keys.shape[3] % 2:
        raise InvalidInputError(f"Heads of {keys.shape[3]} can't be kept as int4; take int8.")
    first = first_tokens(keys.shape[2])
    packed = {
        "first_keys": keys[:, :, :first].to(half),
        "first_values": values[:, :, :first].to(half),
    }
    group = key_group(kv_format)
    rest = keys[:, :, first:]
    tokens = rest.shape[2]
    # Repeat the last token to fill the last group: that doesn't change its least and greatest.
    filled = torch.cat([rest, rest[:, :, -1:].expand(-1, -1, -tokens % group, -1)], dim=2)
    grouped = filled.view(*filled.shape[:2], filled.shape[2] // group, group, filled.shape[3])
    steps, packed["keys_scale"], packed["keys_zero"] = _steps(grouped, 3, kv_format)
    packed["keys"] = _bytes(steps.flatten(2, 3)[:, :, :tokens], kv_format)
    rest = values[:, :, first:]
    wide = value_group(kv_format, rest.shape[3])
    grouped = rest.reshape(*rest.shape[:3], rest.shape[3] // wide, wide)
    steps, packed["values_scale"], packed["values_zero"] = _steps(grouped, 4, kv_format)
    packed["values"] = _bytes(steps.flatten(3, 4), kv_format)
    return packed


def dequantised(
    kv_format: KVFormat, packed: Mapping[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [L, Hkv, T, D] in float32, of some layers' tensors on any device."""
    steps = _numbers(packed["keys"], kv_format)
    group, tokens = key_group(kv_format), steps.shape[2]
    scale, zero = (
        packed[f"keys_{what}"].float().repeat_interleave(group, 2)[:, :, :tokens]
        for what in ("scale", "zero")
    )
    keys = torch.cat([packed["first_keys"].float(), torch.addcmul(zero, scale, steps)], dim=2)
    steps = _numbers(packed["values"], kv_format)
    wide = value_group(kv_format, steps.shape[3])
    scale, zero = (packed[f"values_{what}"].float()[..., None] for what in ("scale", "zero"))
    grouped = steps.view(*steps.shape[:3], steps.shape[3] // wide, wide)
    rest = torch.addcmul(zero, scale, grouped)
    values = torch.cat([packed["first_values"].float(), rest.flatten(3, 4)], dim=2)
    return keys, values


def _steps(
    groups: torch.Tensor, dim: int, kv_format: KVFormat
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each number's step within its group along `dim`, and the groups' float16 scales and zeros."""
    levels = _LEVELS[kv_format]
    if 0 in groups.shape:
        bound = groups.new_zeros([*groups.shape[:dim], *groups.shape[dim + 1 :]]).half()
        return groups, bound, bound
    low, high = (bound.unsqueeze(dim) for bound in groups.aminmax(dim=dim))
    # Rounded outwards: otherwise a number at either end could be off by more than half a step.
    zero = _rounded(low, -1.0)
    scale = _rounded((high - zero.float()) / levels, 1.0)
    steps = (groups - zero.float()) / scale.float().clamp(min=torch.finfo(torch.float16).tiny)
    return steps.round_().clamp_(0, levels), scale.squeeze(dim), zero.squeeze(dim)


def _rounded(numbers: torch.Tensor, direction: float) -> torch.Tensor:
    """As float16, rounded down where direction is negative, else up."""
    near = numbers.half()
    wrong = near.float() > numbers if direction < 0 else near.float() < numbers
    beyond = torch.nextafter(near, torch.full_like(near, direction * torch.inf))
    return torch.where(wrong, beyond, near)


def _bytes(steps: torch.Tensor, kv_format: KVFormat) -> torch.Tensor:
    """Steps as bytes; in 4 bits, channels of the first half low, those of the second half high."""
    whole = steps.to(torch.uint8)
    if kv_format == "int8":
        return whole
    low, high = whole.chunk(2, dim=3)
    return low | (high << 4)


def _numbers(packed: torch.Tensor, kv_format: KVFormat) -> torch.Tensor:
    """Steps in float32."""
    if kv_format == "int8":
        return packed.float()
    return torch.cat([packed & 15, packed >> 4], dim=3).float()
