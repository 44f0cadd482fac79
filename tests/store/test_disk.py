"""KV records in files, as tensors: round trips in every format, and what is refused."""

from __future__ import annotations

import json
import struct
import threading
from pathlib import Path

import pytest
import safetensors.torch
import torch
import xxhash

from fusionrag_integrations.errors import InvalidInputError, KVForeignError, KVMissingError
from fusionrag_integrations.store.kv.local import LocalKVFiles
from fusionrag_integrations.store.kv.record_store import RecordStore, format_of
from fusionrag_integrations.store.kv.types import ChunkKV
from tests.store.made import SIGNATURE, assert_equal, random_kv

KEY = "abcdef01"
DOCS = Path(__file__).parents[2] / "docs" / "kv_format.md"


def tiny(key: str = KEY, first: float = 1.0) -> ChunkKV:
    """The record that docs/kv_format.md spells out."""
    return ChunkKV(
        key=key,
        kind="fused",
        token_ids=(5, 258),
        keys=torch.tensor([first, 2.0]).view(1, 1, 2, 1),
        values=torch.tensor([-1.0, 0.5]).view(1, 1, 2, 1),
        neighbours=("0a", "0b"),
    )


def built(data: bytes) -> bytes:
    """The file of `tiny`, made without the code under test."""
    header = {
        "__metadata__": {
            "digests": f"{xxhash.xxh3_64_hexdigest(data[:8])},{xxhash.xxh3_64_hexdigest(data[8:])}",
            "format": "fusionrag-kv",
            "format_version": "2",
            "half": "F16",
            "key": KEY,
            "kind": "fused",
            "kv_format": "float32",
            "neighbours": "0a,0b",
            "shape": "1,1,2,1",
            "signature": SIGNATURE,
        },
        "token_ids": {"dtype": "I32", "shape": [2], "data_offsets": [0, 8]},
        "keys": {"dtype": "F32", "shape": [1, 1, 2, 1], "data_offsets": [8, 16]},
        "values": {"dtype": "F32", "shape": [1, 1, 2, 1], "data_offsets": [16, 24]},
    }
    text = json.dumps(header, sort_keys=True, separators=(",", ":"))
    header["__metadata__"]["checksum"] = xxhash.xxh3_64_hexdigest(text.encode())
    text = json.dumps(header, sort_keys=True, separators=(",", ":"))
    text += " " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text.encode() + data


@pytest.fixture
def store(tmp_path: Path) -> RecordStore:
    return RecordStore(LocalKVFiles(tmp_path), SIGNATURE, "float32")


def path_of(store: RecordStore, key: str = KEY) -> Path:
    return store.files.files.directory / key[:2] / f"{key}.safetensors"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_record_comes_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    record = random_kv(dtype=dtype)
    RecordStore(LocalKVFiles(tmp_path), SIGNATURE, format_of(dtype)).put(record)
    got = RecordStore(LocalKVFiles(tmp_path), SIGNATURE, format_of(dtype)).get(KEY)
    assert_equal(got.dense(), record)
    assert got.ready()
    for layers in (slice(0, 1), slice(1, 3)):
        keys, values = got.tensors(layers, torch.device("cpu"))
        assert torch.equal(keys, record.keys[layers])
        assert torch.equal(values, record.values[layers])


def test_special_values_and_strides_come_back(store: RecordStore) -> None:
    keys = torch.tensor([float("nan"), float("inf"), -0.0, 1e-40, 1.0, 2.0]).view(1, 2, 3, 1)
    strided = keys.transpose(1, 2).contiguous().transpose(1, 2)
    assert not strided.is_contiguous()
    record = ChunkKV(KEY, "isolated", (1, 2, 2**31 - 1), strided, keys.clone())
    store.put(record)
    assert_equal(store.get(KEY).dense(), record)


def test_a_file_is_exactly_what_the_format_says(store: RecordStore) -> None:
    store.put(tiny())
    content = path_of(store).read_bytes()
    assert content == built(struct.pack("<2i4f", 5, 258, 1.0, 2.0, -1.0, 0.5))
    worked_example = DOCS.read_text().split("```hex\n")[1].split("```")[0]
    assert content == bytes.fromhex(worked_example)
    assert store.file_bytes(tiny()) == len(content) == store.size_bytes()


@pytest.mark.parametrize("kv_format", ["float32", "bfloat16", "int8", "int4"])
def test_other_safetensors_readers_can_read_a_file(tmp_path: Path, kv_format: str) -> None:
    store = RecordStore(LocalKVFiles(tmp_path), SIGNATURE, kv_format)  # type: ignore[arg-type]
    store.put(random_kv())
    tensors = safetensors.torch.load_file(path_of(store))
    assert tensors["token_ids"].tolist() == list(range(100, 109))
    assert {"keys", "values"} <= tensors.keys()
    if kv_format == "bfloat16":
        assert torch.equal(tensors["keys"], random_kv().keys.bfloat16())
    assert store.file_bytes(random_kv()) == path_of(store).stat().st_size


def test_a_record_of_another_signature_or_key_is_foreign(store: RecordStore) -> None:
    store.put(tiny())
    with pytest.raises(KVForeignError, match=r"model-a.*model-b"):
        RecordStore(LocalKVFiles(store.files.files.directory), "model-b", "float32").get(KEY)
    path_of(store).rename(path_of(store, "abff"))
    with pytest.raises(KVForeignError, match=KEY):
        store.get("abff")


def test_contains_delete_keys_and_age(store: RecordStore) -> None:
    keys = ["ff00", KEY, "abff", "00"]
    for key in keys:
        store.put(tiny(key))
    assert list(store.keys()) == sorted(keys)
    assert sorted(key for key, _ in store.by_age()) == sorted(keys)
    store.delete(KEY)
    store.delete(KEY)
    assert KEY not in set(store.keys())
    assert "abff" in set(store.keys())
    with pytest.raises(KVMissingError, match=KEY):
        store.get(KEY)


@pytest.mark.parametrize("key", ["", "a", "AB", "abcg", "../ab", "ab/cd", "ab\n", "a" * 129])
def test_only_hex_keys_name_files(store: RecordStore, key: str) -> None:
    for use in (store.get, store.delete, lambda key: store.put(tiny(key))):
        with pytest.raises(InvalidInputError, match="hex"):
            use(key)


def test_kv_that_the_format_cannot_hold_is_refused(store: RecordStore) -> None:
    kv = torch.zeros(1, 1, 2, 1)
    for record, words in [
        (ChunkKV(KEY, "isolated", (1, 2), kv.double(), kv.double()), "float64"),
        (ChunkKV(KEY, "isolated", (1, 2), kv.half(), kv), "float16.*float32"),
        (ChunkKV(KEY, "isolated", (), kv[:, :, :0], kv[:, :, :0]), "empty"),
        (ChunkKV(KEY, "fused", (1, 2), kv, kv, ("0a,0b",)), "0a,0b"),
        (ChunkKV(KEY, "isolated", (1, 2), kv, kv, rotated=True), "rotated"),
    ]:
        with pytest.raises(InvalidInputError, match=words):
            store.put(record)
    assert not list(store.files.files.directory.iterdir())


def test_writers_of_one_key_and_readers_never_see_half_a_record(store: RecordStore) -> None:
    store.put(tiny(first=0.0))
    firsts: set[float] = set()
    writing = threading.Event()

    def write(number: float) -> None:
        for _ in range(20):
            store.put(tiny(first=number))

    def read() -> None:
        while not writing.is_set():
            firsts.add(store.get(KEY).dense().keys.flatten()[0].item())

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write, args=(float(n),)) for n in range(1, 5)]
    for thread in [reader, *writers]:
        thread.start()
    for thread in writers:
        thread.join()
    writing.set()
    reader.join()
    assert firsts
    assert firsts <= {0.0, 1.0, 2.0, 3.0, 4.0}
    assert list(store.keys()) == [KEY]
