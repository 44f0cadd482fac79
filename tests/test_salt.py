"""A store's salt: the same one hits, another one misses, and it is nowhere to be read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fusionrag_integrations import AnswerSettings, FusionEngine
from fusionrag_integrations.documents.keys import fused_key, isolated_key, record_signature, salt_id
from fusionrag_integrations.errors import InvalidInputError, KVForeignError, StoreMismatchError
from fusionrag_integrations.prompt import question_prompt
from fusionrag_integrations.store.kv.local import LocalKVFiles
from fusionrag_integrations.store.kv.record_store import RecordStore
from tests.conftest import town

SALT = "tenant-a-secret"


def made(model_dir: Path, path: Path, salt: str) -> FusionEngine:
    engine = FusionEngine.from_pretrained(model_dir, store=path, chunk_tokens=48, salt=salt)
    engine.ingest([town(0)])
    return engine


def fused_chunks(engine: FusionEngine) -> int:
    catalog = engine.store.catalog
    texts = [r.chunk.text for r in catalog.chunks.records(catalog.chunks.ids()).values()]
    settings = AnswerSettings(max_tokens=2, corrected=False)
    return engine.answer(question_prompt(texts, "Which house?"), settings).fused_chunks


@pytest.mark.parametrize("salt", ["", SALT])
def test_the_same_salt_hits(model_dir: Path, tmp_path: Path, salt: str) -> None:
    first = made(model_dir, tmp_path / "a", salt)
    keys = set(first.kv.keys())
    first.store.close()
    again = FusionEngine.from_pretrained(model_dir, store=tmp_path / "a", salt=salt)
    assert fused_chunks(again) == 3
    assert again.kv.metrics().misses == 0
    assert set(made(model_dir, tmp_path / "b", salt).kv.keys()) == keys


def test_another_salt_misses(model_dir: Path, tmp_path: Path) -> None:
    ours, theirs = made(model_dir, tmp_path / "a", SALT), made(model_dir, tmp_path / "b", "other")
    assert not set(ours.kv.keys()) & set(theirs.kv.keys())
    shutil.rmtree(tmp_path / "b" / "kv")
    shutil.copytree(tmp_path / "a" / "kv", tmp_path / "b" / "kv")
    assert fused_chunks(theirs) == 0
    assert theirs.kv.metrics().misses > 0


def test_a_copied_record_is_foreign_even_under_the_right_name(
    model_dir: Path, tmp_path: Path
) -> None:
    ours, theirs = made(model_dir, tmp_path / "a", SALT), made(model_dir, tmp_path / "b", "")
    source, target = (next(e.store.path.glob("kv/??/*")) for e in (ours, theirs))
    shutil.copy(source, target)
    with pytest.raises(KVForeignError):
        theirs.kv.get(target.name.split(".")[0])


@pytest.mark.parametrize("given", ["", "other"])
def test_a_store_opens_with_its_own_salt_only(model_dir: Path, tmp_path: Path, given: str) -> None:
    made(model_dir, tmp_path / "a", SALT)
    with pytest.raises(StoreMismatchError, match="another salt"):
        FusionEngine.from_pretrained(model_dir, store=tmp_path / "a", salt=given)
    made(model_dir, tmp_path / "b", "")
    with pytest.raises(StoreMismatchError, match="no salt"):
        FusionEngine.from_pretrained(model_dir, store=tmp_path / "b", salt=SALT)


def test_it_is_kept_nowhere(model_dir: Path, tmp_path: Path) -> None:
    made(model_dir, tmp_path / "a", SALT)
    assert all(
        SALT.encode() not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()
    )


def test_it_is_a_string(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="give a string"):
        FusionEngine.from_pretrained(model_dir, store=tmp_path / "a", salt=5)  # type: ignore[arg-type]


def test_every_field_changes_every_key() -> None:
    def keys(model: str, kv_format: str, salt: str, ids: list[int], scope: str) -> set[str]:
        signature = record_signature(model, kv_format, salt_id(salt))
        isolated = isolated_key(ids, signature, scope)
        return {isolated, fused_key(isolated, ["aa"]), fused_key(isolated, ["aa", "bb"])}

    base = ("model", "int8", "salt", [1, 2], "scope")
    changes = ("other", "int4", "", [1, 3], "")
    found = keys(*base)
    for place, change in enumerate(changes):
        other = keys(*base[:place], change, *base[place + 1 :])  # type: ignore[arg-type]
        assert len(found | other) == len(found) + 3
        found |= other


def test_the_format_is_the_stores_own(model_dir: Path, tmp_path: Path) -> None:
    engine = FusionEngine.from_pretrained(
        model_dir, store=tmp_path / "a", chunk_tokens=48, kv_format="int8"
    )
    engine.ingest([town(0)])
    assert fused_chunks(engine) == 3
    assert engine.store.catalog.info.kv_format == "int8"
    again = FusionEngine.from_pretrained(model_dir, store=tmp_path / "a")
    assert fused_chunks(again) == 3
    with pytest.raises(InvalidInputError, match=r"int8, not 'int4'; fusionrag reindex"):
        FusionEngine.from_pretrained(model_dir, store=tmp_path / "a", kv_format="int4")
    with pytest.raises(InvalidInputError, match=r"'int3'; choose one of float32"):
        FusionEngine.from_pretrained(model_dir, store=tmp_path / "b", kv_format="int3")  # type: ignore[arg-type]
    plain = made(model_dir, tmp_path / "c", "")
    assert not set(plain.kv.keys()) & set(again.kv.keys())
    signature = again.store.catalog.info.record_signature
    sizes = [
        RecordStore(LocalKVFiles(path / "kv"), signature, "int8").size_bytes()
        for path in (tmp_path / "a", tmp_path / "c")
    ]
    assert sizes[0] < 0.5 * sizes[1]
