"""Records for tests of the store."""

from __future__ import annotations

import torch

from fusionrag_integrations.store.kv.types import ChunkKV

SIGNATURE = "model-a"


def random_kv(
    key: str = "abcdef01",
    dtype: torch.dtype = torch.float32,
    shape: tuple[int, int, int, int] = (3, 2, 9, 8),
    seed: int = 3,
) -> ChunkKV:
    """Random KV of tokens 100, 101, ..."""
    generator = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    return ChunkKV(key, "isolated", tuple(range(100, 100 + shape[2])), keys, values)


def large_kv(key: str, seed: int = 0) -> ChunkKV:
    """KV that is read by groups of layers: over a megabyte."""
    return random_kv(key, shape=(6, 2, 400, 32), seed=seed)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Bytes, so that NaNs and zeros of either sign compare as they are."""
    return tensor.contiguous().flatten().view(torch.uint8)


def assert_equal(got: ChunkKV, wanted: ChunkKV) -> None:
    assert (got.key, got.kind, got.token_ids) == (wanted.key, wanted.kind, wanted.token_ids)
    assert got.neighbours == wanted.neighbours
    for a, b in ((got.keys, wanted.keys), (got.values, wanted.values)):
        assert (a.dtype, a.shape, a.device.type) == (b.dtype, b.shape, "cpu")
        assert torch.equal(bits(a), bits(b))
