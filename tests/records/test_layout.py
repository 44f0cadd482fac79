"""Where a record's bytes lie, to the byte."""

from __future__ import annotations

import struct
from dataclasses import replace
from itertools import pairwise
from math import prod

import pytest
import safetensors

from fusionrag_integrations.errors import KVCorruptError, KVForeignError
from fusionrag_integrations.store.kv.record_format import (
    FIRST_TOKENS,
    FORMAT_VERSION,
    ITEM_BYTES,
    MAX_HEADER_BYTES,
    entries,
    first_tokens,
    header_bytes,
    header_length,
    is_key,
    parse_header,
    value_group,
    with_digests,
)
from tests.records.by_hand import build, build_version_one, tiny_parts, version_one_parts
from tests.records.writer import KEY, data_of, file_of, header_of, version_of, write

FORMATS = ("float32", "float16", "bfloat16", "int8", "int4")
SHAPES = [
    (1, 1, 1, 2),
    (3, 2, 5, 8),
    (2, 1, 4, 6),
    (1, 2, 67, 128),
    (2, 3, 260, 192),
    (1, 1, 3, 64),
]


def tensors_of(kv_format, shape, half="F16"):
    """Name, dtype and shape of each tensor, in order."""
    return [(name, e.dtype, e.shape) for name, e in entries(kv_format, shape, half).items()]


@pytest.mark.parametrize(
    ("kv_format", "dtype"), [("float32", "F32"), ("float16", "F16"), ("bfloat16", "BF16")]
)
def test_dense_formats_hold_tokens_keys_and_values(kv_format, dtype):
    assert tensors_of(kv_format, (3, 2, 5, 8)) == [
        ("token_ids", "I32", (5,)),
        ("keys", dtype, (3, 2, 5, 8)),
        ("values", dtype, (3, 2, 5, 8)),
    ]


@pytest.mark.parametrize("half", ["F16", "BF16"])
def test_int8_shares_scales_among_256_tokens_and_128_channels(half):
    assert tensors_of("int8", (3, 2, 261, 256), half) == [
        ("token_ids", "I32", (261,)),
        ("first_keys", half, (3, 2, 4, 256)),
        ("first_values", half, (3, 2, 4, 256)),
        ("keys_scale", "F16", (3, 2, 2, 256)),
        ("keys_zero", "F16", (3, 2, 2, 256)),
        ("values_scale", "F16", (3, 2, 257, 2)),
        ("values_zero", "F16", (3, 2, 257, 2)),
        ("keys", "U8", (3, 2, 257, 256)),
        ("values", "U8", (3, 2, 257, 256)),
    ]


def test_int4_shares_scales_among_64_tokens_and_64_channels():
    assert tensors_of("int4", (3, 2, 133, 128), "BF16") == [
        ("token_ids", "I32", (133,)),
        ("first_keys", "BF16", (3, 2, 4, 128)),
        ("first_values", "BF16", (3, 2, 4, 128)),
        ("keys_scale", "F16", (3, 2, 3, 128)),
        ("keys_zero", "F16", (3, 2, 3, 128)),
        ("values_scale", "F16", (3, 2, 129, 2)),
        ("values_zero", "F16", (3, 2, 129, 2)),
        ("keys", "U8", (3, 2, 129, 64)),
        ("values", "U8", (3, 2, 129, 64)),
    ]


@pytest.mark.parametrize("kv_format", ["int8", "int4"])
@pytest.mark.parametrize("tokens", range(1, FIRST_TOKENS + 1))
def test_a_chunk_of_first_tokens_alone_has_no_scales(kv_format, tokens):
    found = entries(kv_format, (2, 1, tokens, 8), "F16")
    assert first_tokens(tokens) == tokens
    assert found["first_keys"].shape == found["first_values"].shape == (2, 1, tokens, 8)
    for name in ("keys", "values", "keys_scale", "keys_zero", "values_scale", "values_zero"):
        assert found[name].shape[2] == 0
        assert found[name].start == found[name].stop


@pytest.mark.parametrize(
    ("kv_format", "tokens", "groups"),
    [
        *[("int8", 5, 1), ("int8", 260, 1), ("int8", 261, 2)],
        *[("int4", 5, 1), ("int4", 68, 1), ("int4", 69, 2)],
    ],
)
def test_a_last_group_of_tokens_may_be_short(kv_format, tokens, groups):
    assert entries(kv_format, (1, 1, tokens, 8), "F16")["keys_scale"].shape[2] == groups


@pytest.mark.parametrize(
    ("kv_format", "size", "group"),
    [
        *[("int8", 128, 128), ("int8", 256, 128), ("int8", 192, 192), ("int8", 64, 64)],
        *[("int4", 128, 64), ("int4", 64, 64), ("int4", 96, 96), ("int4", 32, 32)],
    ],
)
def test_channels_that_make_no_whole_groups_share_one_scale(kv_format, size, group):
    assert value_group(kv_format, size) == group
    assert entries(kv_format, (1, 1, 5, size), "F16")["values_scale"].shape[3] == size // group


@pytest.mark.parametrize("kv_format", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_tensors_are_aligned_and_lie_without_gaps(kv_format, shape):
    found = entries(kv_format, shape, "BF16")
    assert next(iter(found.values())).start == 0
    for left, right in pairwise(found.values()):
        assert left.stop == right.start
    for tensor in found.values():
        assert tensor.start % ITEM_BYTES[tensor.dtype] == 0
        assert tensor.stop - tensor.start == prod(tensor.shape) * ITEM_BYTES[tensor.dtype]
    assert header_of(shape=shape, kv_format=kv_format).data_bytes == tensor.stop


@pytest.mark.parametrize("kv_format", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_layers_divide_every_tensor_but_the_token_ids(kv_format, shape):
    for name, tensor in entries(kv_format, shape, "F16").items():
        if name != "token_ids":
            parts = [tensor.of_layers(range(n, n + 1)) for n in range(shape[0])]
            assert parts[0].start == tensor.start
            assert parts[-1].stop == tensor.stop
            assert all(left.stop == right.start for left, right in pairwise(parts))
            assert tensor.of_layers(range(shape[0])) == slice(tensor.start, tensor.stop)


@pytest.mark.parametrize(("kv_format", "share"), [("int8", 0.53), ("int4", 0.30)])
def test_compact_formats_take_little_of_what_16_bits_take(kv_format, share):
    shape = (28, 4, 256, 128)
    dense = header_of(shape=shape, kv_format="bfloat16").data_bytes
    assert header_of(shape=shape, kv_format=kv_format).data_bytes <= share * dense


@pytest.mark.parametrize("kv_format", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_header_comes_back(kv_format, shape):
    header = header_of(shape=shape, kv_format=kv_format)
    whole = with_digests(header, memoryview(data_of(header)))
    content = header_bytes(whole)
    assert len(content) % 8 == 0
    assert header_length(content[:8], len(content) + whole.data_bytes, "x") == len(content)
    assert parse_header(content, "x") == whole
    assert replace(parse_header(content, "x"), digests=()) == header


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "isolated", "neighbours": ()},
        {"neighbours": ("0a", "0b" * 32)},
        {"half": "BF16"},
        {"signature": 'quote " comma , brace } line \n é 漢 \x00'},
    ],
)
def test_whatever_a_header_says_comes_back(change):
    header = replace(header_of(shape=(1, 1, 1, 1)), digests=("0" * 16, "f" * 16), **change)
    assert parse_header(header_bytes(header), "x") == header


@pytest.mark.parametrize("kv_format", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_file_bytes_are_what_the_file_has(files, directory, kv_format, shape):
    header = header_of(shape=shape, kv_format=kv_format)
    assert write(files, shape=shape, kv_format=kv_format) == header.file_bytes
    assert file_of(directory).stat().st_size == header.file_bytes
    with files.open(KEY) as record:
        assert record.header.file_bytes == header.file_bytes


def test_a_file_is_exactly_what_the_format_says(files, directory):
    listed, data = tiny_parts()
    header = replace(header_of(shape=(1, 1, 2, 1)), neighbours=("0a", "0b"))
    files.write(header, [memoryview(data[:8]), memoryview(data[8:16]), memoryview(data[16:])])
    assert file_of(directory).read_bytes() == build(listed, data)


@pytest.mark.parametrize("kv_format", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_other_safetensors_readers_find_the_same_bytes(files, directory, kv_format, shape):
    write(files, shape=shape, kv_format=kv_format)
    header = header_of(shape=shape, kv_format=kv_format)
    data = data_of(header)
    tensors = dict(safetensors.deserialize(file_of(directory).read_bytes()))
    assert set(tensors) == set(header.entries)
    for name, entry in header.entries.items():
        assert tensors[name]["dtype"] == entry.dtype
        assert tuple(tensors[name]["shape"]) == entry.shape
        assert bytes(tensors[name]["data"]) == data[entry.start : entry.stop]


@pytest.mark.parametrize("kv_format", ["float32", "int8", "int4"])
def test_safetensors_opens_a_file_and_finds_its_metadata(files, directory, kv_format):
    shape = (2, 2, 70, 64)
    write(files, shape=shape, kv_format=kv_format)
    header = header_of(shape=shape, kv_format=kv_format)
    with safetensors.safe_open(file_of(directory), framework="numpy") as opened:
        metadata = opened.metadata()
        for name, entry in header.entries.items():
            content = opened.get_tensor(name).tobytes()
            assert content == data_of(header)[entry.start : entry.stop]
    assert metadata["format"] == "fusionrag-kv"
    assert metadata["format_version"] == str(FORMAT_VERSION)
    assert metadata["key"] == KEY
    assert metadata["kv_format"] == kv_format
    assert len(metadata["digests"].split(",")) == 1 + shape[0]


# Other versions


def test_a_record_of_the_first_version_is_foreign(files, directory):
    write(files)
    file_of(directory).write_bytes(build_version_one(*version_one_parts()))
    with pytest.raises(KVForeignError, match=rf"{KEY}.*version '1'.*version 2"):
        version_of(files)


@pytest.mark.parametrize("more", [{}, {"codec": "zstd"}, {"shape": "whatever"}])
@pytest.mark.parametrize("version", ["3", "20", "0", "two"])
def test_an_intact_record_of_another_version_is_foreign(files, directory, version, more):
    write(files)
    listed, data = tiny_parts()
    listed["__metadata__"].update(format_version=version, **more)
    file_of(directory).write_bytes(build(listed, data))
    with pytest.raises(KVForeignError, match=f"version '{version}'"):
        version_of(files)


def test_a_damaged_record_of_another_version_is_corrupt(files, directory):
    write(files)
    listed, data = tiny_parts()
    listed["__metadata__"].update(format_version="3")
    content = build(listed, data).replace(b'"kind":"fused"', b'"kind":"fuzed"')
    file_of(directory).write_bytes(content)
    with pytest.raises(KVCorruptError, match="checksum"):
        version_of(files)


@pytest.mark.parametrize("version_one", [True, False])
def test_a_file_of_another_format_is_corrupt_whatever_its_version(files, directory, version_one):
    write(files)
    listed, data = version_one_parts() if version_one else tiny_parts()
    listed["__metadata__"].update(format="something")
    content = (build_version_one if version_one else build)(listed, data)
    file_of(directory).write_bytes(content)
    with pytest.raises(KVCorruptError, match="something"):
        version_of(files)


# Bounds


def test_a_header_is_as_long_as_its_first_bytes_say():
    assert header_length(struct.pack("<Q", 16) + bytes(16), 24, "x") == 24
    assert header_length(struct.pack("<Q", MAX_HEADER_BYTES), 1 << 30, "x") == 8 + MAX_HEADER_BYTES


@pytest.mark.parametrize(
    ("length", "file_bytes"), [(17, 24), (MAX_HEADER_BYTES + 1, 1 << 30), (2**64 - 1, 1 << 40)]
)
def test_a_header_longer_than_it_may_be_is_corrupt(length, file_bytes):
    with pytest.raises(KVCorruptError, match="x is damaged"):
        header_length(struct.pack("<Q", length), file_bytes, "x")


@pytest.mark.parametrize("count", range(8))
def test_a_file_too_short_for_a_header_is_corrupt(count):
    with pytest.raises(KVCorruptError, match="x is damaged"):
        header_length(bytes(count), count, "x")


@pytest.mark.parametrize("key", ["00", "ab", "0123456789abcdef", "f" * 128])
def test_lower_case_hex_is_a_key(key):
    assert is_key(key)
