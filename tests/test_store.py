"""KV records on disk: round trips, exact bytes, every kind of damage, atomic writes."""

import json
import os
import struct
import threading
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
import xxhash

from fusionrag_integrations.errors import (
    InvalidInputError,
    KVCorruptError,
    KVForeignError,
    KVMissingError,
    StoreError,
)
from fusionrag_integrations.store import FileKVStore, verify
from fusionrag_integrations.types import ChunkKV

KEY = "abcdef01"
OTHER = "abff"
DOCS = Path(__file__).parents[1] / "docs" / "kv_format.md"


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


def random_record(dtype: torch.dtype, key: str = KEY) -> ChunkKV:
    generator = torch.Generator().manual_seed(3)
    keys, values = (torch.randn(3, 2, 5, 7, generator=generator).to(dtype) for _ in range(2))
    return ChunkKV(key, "isolated", (0, 1, 2**31 - 1, 7, 7), keys, values)


def bits(tensor: torch.Tensor) -> list[int]:
    return tensor.contiguous().flatten().view(torch.uint8).tolist()


def assert_equal(got: ChunkKV, wanted: ChunkKV) -> None:
    assert (got.key, got.kind, got.token_ids) == (wanted.key, wanted.kind, wanted.token_ids)
    assert got.neighbours == wanted.neighbours
    for a, b in ((got.keys, wanted.keys), (got.values, wanted.values)):
        assert (a.dtype, a.shape, a.device.type) == (b.dtype, b.shape, "cpu")
        assert a.is_contiguous()
        assert bits(a) == bits(b)


def file_of(store_directory: Path, key: str = KEY) -> Path:
    return store_directory / key[:2] / f"{key}.safetensors"


def build(header: dict, data: bytes) -> bytes:
    """A file with a right checksum, made without the code under test."""
    metadata = header["__metadata__"]
    metadata.pop("checksum", None)
    text = json.dumps(header, sort_keys=True, separators=(",", ":"))
    metadata["checksum"] = f"{xxhash.xxh3_64_intdigest(text.encode() + data):016x}"
    text = json.dumps(header, sort_keys=True, separators=(",", ":"))
    text += " " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text.encode() + data


def tiny_parts() -> tuple[dict, bytes]:
    header = {
        "__metadata__": {
            "format": "fusionrag-kv",
            "format_version": "1",
            "key": KEY,
            "kind": "fused",
            "neighbours": "0a,0b",
            "signature": "model-a",
        },
        "keys": {"dtype": "F32", "shape": [1, 1, 2, 1], "data_offsets": [0, 8]},
        "values": {"dtype": "F32", "shape": [1, 1, 2, 1], "data_offsets": [8, 16]},
        "token_ids": {"dtype": "I32", "shape": [2], "data_offsets": [16, 24]},
    }
    return header, struct.pack("<4f2i", 1.0, 2.0, -1.0, 0.5, 5, 258)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "kv"


@pytest.fixture
def store(directory: Path) -> FileKVStore:
    return FileKVStore(directory, "model-a")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_record_comes_back_bit_for_bit(store, directory, dtype):
    record = random_record(dtype)
    store.put(record)
    assert_equal(store.get(KEY), record)
    assert_equal(FileKVStore(directory, "model-a").get(KEY), record)


def test_special_values_and_strides_come_back(store):
    keys = torch.tensor([float("nan"), float("inf"), -0.0, 1e-40, 1.0, 2.0]).view(1, 2, 3, 1)
    strided = keys.transpose(1, 2).contiguous().transpose(1, 2)
    assert not strided.is_contiguous()
    record = ChunkKV(KEY, "isolated", (1, 2, 3), strided, keys.clone())
    store.put(record)
    assert_equal(store.get(KEY), record)


def test_a_file_is_exactly_what_the_format_says(store, directory):
    store.put(tiny())
    content = file_of(directory).read_bytes()
    assert content == build(*tiny_parts())
    worked_example = DOCS.read_text().split("```hex\n")[1].split("```")[0]
    assert content == bytes.fromhex(worked_example)


def test_other_safetensors_readers_can_read_a_file(store, directory):
    record = random_record(torch.bfloat16)
    store.put(record)
    tensors = safetensors.torch.load_file(file_of(directory))
    assert sorted(tensors) == ["keys", "token_ids", "values"]
    assert torch.equal(tensors["keys"], record.keys)
    assert torch.equal(tensors["values"], record.values)
    assert tensors["token_ids"].tolist() == list(record.token_ids)
    assert tensors["token_ids"].dtype == torch.int32


def test_every_changed_byte_is_found(store, directory):
    store.put(tiny())
    path = file_of(directory)
    content = path.read_bytes()
    for position, byte in enumerate(content):
        for other in {byte ^ 0x01, byte ^ 0x80, byte ^ 0x20, 0x00, 0x0A, 0x20} - {byte}:
            path.write_bytes(content[:position] + bytes([other]) + content[position + 1 :])
            with pytest.raises(KVCorruptError, match=KEY):
                store.get(KEY)


def test_every_truncation_and_extension_is_found(store, directory):
    store.put(tiny())
    path = file_of(directory)
    content = path.read_bytes()
    for damaged in [content[:length] for length in range(len(content))] + [
        content + b"\0",
        content + content,
        content[8:],
    ]:
        path.write_bytes(damaged)
        with pytest.raises(KVCorruptError, match=KEY):
            store.get(KEY)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff" * 400,
        b"\0" * 8,
        struct.pack("<Q", 2**63) + b"{}" * 50,
        struct.pack("<Q", 8) + b"[1,2,3] ",
        struct.pack("<Q", 8) + b"12345678",
        struct.pack("<Q", 40) + b'{"__metadata__":{}}'.ljust(40),
        struct.pack("<Q", 40) + b'{"__metadata__":[]}'.ljust(40),
        struct.pack("<Q", 80_000) + b"[" * 80_000,
        struct.pack("<Q", 40) + b"\xf0\x28\x8c\x28".ljust(40),
        struct.pack("<Q", 5_000) + b"9" * 5_000,
    ],
)
def test_garbage_is_named_corrupt(store, directory, garbage):
    store.put(tiny())
    file_of(directory).write_bytes(garbage)
    with pytest.raises(KVCorruptError, match=KEY):
        store.get(KEY)


def test_another_safetensors_file_is_corrupt(store, directory):
    store.put(tiny())
    safetensors.torch.save_file({"keys": torch.zeros(1, 1, 2, 1)}, file_of(directory))
    with pytest.raises(KVCorruptError):
        store.get(KEY)


def test_something_other_than_a_file_is_corrupt(store, directory):
    file_of(directory).mkdir(parents=True)
    with pytest.raises(KVCorruptError, match="regular file"):
        store.get(KEY)
    assert not store.contains(KEY)
    os.mkfifo(file_of(directory, OTHER))
    with pytest.raises(KVCorruptError, match="regular file"):
        store.get(OTHER)
    with pytest.raises(StoreError, match="Can't write"):
        store.put(tiny())


def set_entry(name, **entry):
    return lambda header: header[name].update(entry)


def set_shape(*shape):
    return lambda header: [header[name].update(shape=shape) for name in ("keys", "values")]


@pytest.mark.parametrize(
    "change",
    [
        set_entry("keys", dtype="I32"),
        set_entry("keys", dtype="F16", shape=[1, 1, 2, 2]),
        set_entry("values", shape=[1, 2, 1, 1]),
        set_entry("keys", shape=[2, 1]),
        set_entry("keys", shape=[1, 1, 1, 2]),
        set_shape(True, 1, 2, 1),
        set_shape(-1, -1, 2, 1),
        set_shape(1.0, 1, 2, 1),
        set_entry("keys", shape=None),
        set_entry("token_ids", dtype="F32"),
        set_entry("values", data_offsets=[0, 8]),
        set_entry("__metadata__", kind="other"),
        set_entry("__metadata__", format="something"),
        set_entry("__metadata__", more="x"),
        set_entry("__metadata__", signature=1),
        lambda header: header.pop("values"),
        lambda header: header.pop("token_ids"),
        lambda header: header["__metadata__"].pop("neighbours"),
        lambda header: header["__metadata__"].pop("format_version"),
        lambda header: header.update(more=header["keys"]),
        lambda header: header.update(keys=[]),
    ],
)
def test_a_wrong_layout_is_corrupt_even_with_a_right_checksum(store, directory, change):
    store.put(tiny())
    header, data = tiny_parts()
    change(header)
    file_of(directory).write_bytes(build(header, data))
    with pytest.raises(KVCorruptError):
        store.get(KEY)


@pytest.mark.parametrize("data_change", [lambda d: d + b"\0" * 8, lambda d: d[:-4]])
def test_data_of_another_length_is_corrupt_even_with_a_right_checksum(
    store, directory, data_change
):
    store.put(tiny())
    header, data = tiny_parts()
    file_of(directory).write_bytes(build(header, data_change(data)))
    with pytest.raises(KVCorruptError):
        store.get(KEY)


def test_an_empty_record_is_corrupt_even_with_a_right_checksum(store, directory):
    store.put(tiny())
    header, _ = tiny_parts()
    for name, shape in (("keys", [1, 1, 0, 1]), ("values", [1, 1, 0, 1]), ("token_ids", [0])):
        header[name].update(shape=shape, data_offsets=[0, 0])
    file_of(directory).write_bytes(build(header, b""))
    with pytest.raises(KVCorruptError):
        store.get(KEY)


def test_a_header_beyond_the_bound_is_corrupt_even_with_a_right_checksum(store, directory):
    store.put(tiny())
    header, data = tiny_parts()
    header["__metadata__"].update(format_version="2", more="x" * 2**20)
    file_of(directory).write_bytes(build(header, data))
    with pytest.raises(KVCorruptError, match="bounds"):
        store.get(KEY)


def test_another_form_of_the_same_header_is_corrupt(store, directory):
    store.put(tiny())
    header, data = tiny_parts()
    build(header, data)  # fills in the checksum
    text = json.dumps(header, sort_keys=True).encode()  # spaces after separators
    file_of(directory).write_bytes(struct.pack("<Q", len(text)) + text + data)
    with pytest.raises(KVCorruptError, match="canonical"):
        store.get(KEY)


def test_an_intact_record_of_another_model_is_foreign(store, directory):
    store.put(tiny())
    with pytest.raises(KVForeignError, match=r"model-a.*model-b"):
        FileKVStore(directory, "model-b").get(KEY)


def test_an_intact_record_of_another_key_is_foreign(store, directory):
    store.put(tiny())
    file_of(directory).rename(file_of(directory, OTHER))
    with pytest.raises(KVForeignError, match=KEY):
        store.get(OTHER)


@pytest.mark.parametrize("more", [{}, {"codec": "zstd"}])
def test_an_intact_record_of_another_version_is_foreign(store, directory, more):
    store.put(tiny())
    header, data = tiny_parts()
    header["__metadata__"].update(format_version="2", **more)
    file_of(directory).write_bytes(build(header, data))
    with pytest.raises(KVForeignError, match="version '2'"):
        store.get(KEY)


def test_a_record_that_is_not_there_is_missing(store):
    for key in (KEY, OTHER):
        assert not store.contains(key)
        with pytest.raises(KVMissingError, match=key):
            store.get(key)
    store.delete(KEY)
    assert list(store.keys()) == []
    assert store.size_bytes() == 0


def test_contains_delete_keys_and_size(store, directory):
    keys = ["ff00", KEY, OTHER, "00"]
    for key in keys:
        store.put(tiny(key))
    assert list(store.keys()) == sorted(keys)
    files = [file for file in directory.rglob("*") if file.is_file()]
    assert store.size_bytes() == sum(len(file.read_bytes()) for file in files)
    assert len(files) == 4
    store.delete(KEY)
    store.delete(KEY)
    assert not store.contains(KEY)
    assert store.contains(OTHER)
    assert list(store.keys()) == ["00", OTHER, "ff00"]


@pytest.mark.parametrize("key", ["", "a", "AB", "abcg", "../ab", "ab/cd", "ab\n", "a" * 129])
def test_only_hex_keys_name_files(store, key):
    for use in (store.get, store.contains, store.delete, lambda key: store.put(tiny(key))):
        with pytest.raises(InvalidInputError, match="hex"):
            use(key)


def test_kv_that_the_format_cannot_hold_is_refused(store, directory):
    kv = torch.zeros(1, 1, 2, 1)
    for record, words in [
        (ChunkKV(KEY, "isolated", (1, 2), kv.double(), kv.double()), "float64"),
        (ChunkKV(KEY, "isolated", (1, 2), kv.half(), kv), "float16.*float32"),
        (ChunkKV(KEY, "isolated", (), kv[:, :, :0], kv[:, :, :0]), "empty"),
        (ChunkKV(KEY, "fused", (1, 2), kv, kv, ("0a,0b",)), "0a,0b"),
    ]:
        with pytest.raises(InvalidInputError, match=words):
            store.put(record)
    assert not directory.exists()


def test_put_replaces(store):
    store.put(tiny(first=1.0))
    store.put(tiny(first=9.0))
    assert_equal(store.get(KEY), tiny(first=9.0))


@pytest.mark.parametrize("step", ["replace", "fsync"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_record_and_no_file(
    store, directory, monkeypatch, step, error
):
    def fail(*arguments):
        raise error

    store.put(tiny(first=1.0))
    before = sorted(directory.rglob("*"))
    with monkeypatch.context() as patch:
        if step == "replace":
            patch.setattr(Path, "replace", fail)
        else:
            patch.setattr("fusionrag_integrations.store.files.fsync", fail)
        with pytest.raises(StoreError if isinstance(error, OSError) else KeyboardInterrupt):
            store.put(tiny(first=9.0))
        with pytest.raises(StoreError if isinstance(error, OSError) else KeyboardInterrupt):
            store.put(tiny(OTHER))
    assert_equal(store.get(KEY), tiny(first=1.0))
    assert not store.contains(OTHER)
    assert sorted(directory.rglob("*")) == before


def test_a_file_has_its_whole_content_before_it_has_its_name(store, monkeypatch):
    seen = []
    real = Path.replace

    def spy(source, target):
        seen.append((source.read_bytes(), target.exists()))
        return real(source, target)

    monkeypatch.setattr(Path, "replace", spy)
    store.put(tiny())
    assert seen == [(build(*tiny_parts()), False)]


def test_old_temporary_files_go_and_young_ones_stay(store, directory):
    store.put(tiny())
    old, young = directory / "tmp" / "old", directory / "tmp" / "young"
    for path in (old, young):
        path.write_bytes(b"half a record")
    two_hours_ago = time.time() - 7200
    os.utime(old, (two_hours_ago, two_hours_ago))
    again = FileKVStore(directory, "model-a")
    assert not old.exists()
    assert young.exists()
    assert list(again.keys()) == [KEY]
    assert list(verify(again)) == []


def test_writers_of_one_key_and_readers_never_see_half_a_record(store):
    store.put(tiny(first=0.0))
    firsts, errors = set(), []
    writing = threading.Event()

    def write(number: float) -> None:
        for _ in range(20):
            store.put(tiny(first=number))

    def read() -> None:
        while not writing.is_set():
            try:
                firsts.add(store.get(KEY).keys.flatten()[0].item())
            except StoreError as error:
                errors.append(error)

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write, args=(float(n),)) for n in range(1, 5)]
    for thread in [reader, *writers]:
        thread.start()
    for thread in writers:
        thread.join()
    writing.set()
    reader.join()
    assert errors == []
    assert firsts
    assert firsts <= {0.0, 1.0, 2.0, 3.0, 4.0}
    assert list(store.keys()) == [KEY]


def strangers(directory: Path) -> list[Path]:
    """Files that aren't records, in every place where one could lie."""
    return [
        directory / "README.txt",
        directory / "ab" / "notes.txt",
        directory / "ab" / "zz.safetensors",
        directory / "cd" / f"{KEY}.safetensors",
        directory / "ab" / ".hidden",
    ]


def test_keys_passes_over_strangers(store, directory):
    store.put(tiny())
    for path in strangers(directory):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    (directory / "ab" / "abcd.safetensors").mkdir()
    (directory / "other").mkdir()
    assert list(store.keys()) == [KEY]


def test_verify_names_every_bad_file_and_counts_all(store, directory):
    for key in (KEY, OTHER, "ab01", "cd02"):
        store.put(tiny(key))
    damaged = file_of(directory, OTHER)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    FileKVStore(directory, "model-b").put(tiny("ab01"))
    for path in strangers(directory):
        path.write_bytes(b"x")
    counted = []
    problems = list(verify(store, lambda done, total: counted.append((done, total))))
    wanted = dict.fromkeys(strangers(directory), KVForeignError)
    wanted |= {damaged: KVCorruptError, file_of(directory, "ab01"): KVForeignError}
    assert {problem.path: type(problem.error) for problem in problems} == wanted
    total = 4 + len(strangers(directory))
    assert counted == [(done, total) for done in range(1, total + 1)]
    assert all(str(problem.path) in str(problem.error) for problem in problems)


def test_verify_passes_over_a_record_deleted_meanwhile(store, directory, monkeypatch):
    store.put(tiny())
    listed = store.paths()
    store.delete(KEY)
    monkeypatch.setattr(store, "paths", lambda: listed)
    assert list(verify(store)) == []


def test_opening_makes_no_files(directory):
    store = FileKVStore(directory, "model-a")
    assert list(verify(store)) == []
    assert not directory.exists()
