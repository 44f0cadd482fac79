"""KV in 8 and 4 bits: how far it is off, and what stays as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.store.kv.local import LocalKVFiles
from fusionrag_integrations.store.kv.record_format import FIRST_TOKENS, key_group, value_group
from fusionrag_integrations.store.kv.record_store import RecordStore
from fusionrag_integrations.store.kv.types import ChunkKV, KVFormat
from tests.store.made import SIGNATURE, random_kv

LEVELS: dict[KVFormat, int] = {"int8": 255, "int4": 15}
every_format = pytest.mark.parametrize("kv_format", list(LEVELS))


def through(directory: Path, kv_format: KVFormat, record: ChunkKV) -> ChunkKV:
    store = RecordStore(LocalKVFiles(directory), SIGNATURE, kv_format)
    store.put(record)
    return store.get(record.key).dense()


def spread(groups: torch.Tensor, dim: int) -> torch.Tensor:
    return groups.amax(dim, keepdim=True) - groups.amin(dim, keepdim=True)


def worst_keys(keys: torch.Tensor, kv_format: KVFormat) -> torch.Tensor:
    """Half a step of each number's group, by brute force, with what rounding the bounds adds."""
    parts = [
        (spread(group, 2) / LEVELS[kv_format] / 2).expand(group.shape)
        for group in keys[:, :, FIRST_TOKENS:].split(key_group(kv_format), dim=2)
    ]
    return torch.cat(parts, dim=2)


@every_format
@pytest.mark.parametrize("tokens", [5, 68, 69, 270])
@pytest.mark.parametrize("size", [8, 96, 128])
def test_no_number_is_off_by_more_than_half_a_step(
    tmp_path: Path, kv_format: KVFormat, tokens: int, size: int
) -> None:
    record = random_kv(shape=(2, 2, tokens, size))
    got = through(tmp_path, kv_format, record)
    rest = slice(FIRST_TOKENS, None)
    off = (got.keys - record.keys).abs()[:, :, rest]
    bound = worst_keys(record.keys, kv_format)
    assert (off <= 1.02 * bound + 2e-3).all()
    wide = value_group(kv_format, size)
    groups = record.values[:, :, rest].unflatten(3, (size // wide, wide))
    bound = (spread(groups, 4) / LEVELS[kv_format] / 2).expand(groups.shape).flatten(3)
    off = (got.values - record.values).abs()[:, :, rest]
    assert (off <= 1.02 * bound + 2e-3).all()
    assert off.max() > 0.5 * bound.min()  # it is compact: not everything comes back


@every_format
def test_large_channels_cost_others_nothing(tmp_path: Path, kv_format: KVFormat) -> None:
    record = random_kv(shape=(1, 1, 100, 16))
    record.keys[..., 3] += 300.0
    got = through(tmp_path, kv_format, record)
    off = (got.keys - record.keys).abs()[:, :, FIRST_TOKENS:]
    step = 7.0 / LEVELS[kv_format]
    assert off[..., :3].max() < step
    assert off[..., 3].max() < step + 0.25  # what 16 bits resolve at 300


@every_format
def test_large_tokens_cost_others_nothing(tmp_path: Path, kv_format: KVFormat) -> None:
    record = random_kv(shape=(1, 1, 100, 16))
    record.values[:, :, 50] *= 1000.0
    got = through(tmp_path, kv_format, record)
    off = (got.values - record.values).abs()
    off[:, :, 50] = 0.0
    assert off.max() < 7.0 / LEVELS[kv_format]


@every_format
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_first_tokens_stay_in_16_bits(
    tmp_path: Path, kv_format: KVFormat, dtype: torch.dtype
) -> None:
    record = random_kv(dtype=dtype)
    half = torch.bfloat16 if dtype == torch.bfloat16 else torch.float16
    got = through(tmp_path, kv_format, record)
    first = slice(0, FIRST_TOKENS)
    for mine, wanted in ((got.keys, record.keys), (got.values, record.values)):
        assert torch.equal(mine[:, :, first], wanted[:, :, first].to(half).float())
        assert not torch.equal(mine, wanted.float())


@every_format
@pytest.mark.parametrize("tokens", [1, 3, 4])
def test_a_chunk_of_first_tokens_alone(tmp_path: Path, kv_format: KVFormat, tokens: int) -> None:
    record = random_kv(shape=(2, 2, tokens, 8))
    got = through(tmp_path, kv_format, record)
    assert torch.equal(got.keys, record.keys.half().float())


@every_format
def test_a_constant_comes_back(tmp_path: Path, kv_format: KVFormat) -> None:
    kv = torch.full((1, 2, 40, 8), 0.7)
    got = through(tmp_path, kv_format, ChunkKV("ab", "isolated", tuple(range(40)), kv, -kv))
    assert torch.allclose(got.keys, kv, atol=1e-3)
    assert torch.allclose(got.values, -kv, atol=1e-3)


@every_format
def test_layers_alone_are_the_same(tmp_path: Path, kv_format: KVFormat) -> None:
    store = RecordStore(LocalKVFiles(tmp_path), SIGNATURE, kv_format)
    store.put(random_kv())
    got = store.get("abcdef01")
    whole = got.dense()
    for layers in (slice(0, 1), slice(1, 3)):
        keys, values = got.tensors(layers, torch.device("cpu"))
        assert torch.equal(keys, whole.keys[layers])
        assert torch.equal(values, whole.values[layers])


@every_format
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 7e4])
def test_numbers_beyond_16_bits_are_refused(
    tmp_path: Path, kv_format: KVFormat, bad: float
) -> None:
    record = random_kv()
    record.values[1, 1, 2, 3] = bad
    with pytest.raises(InvalidInputError, match="kv_format='float32'"):
        through(tmp_path, kv_format, record)


def test_odd_heads_are_refused_in_4_bits(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="take int8"):
        through(tmp_path, "int4", random_kv(shape=(1, 1, 9, 7)))
