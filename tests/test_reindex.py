"""A store made anew for another model or format, while the old one goes on answering."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fusionrag_integrations import FusionEngine, Store
from fusionrag_integrations.engine.reindex import reindex
from fusionrag_integrations.errors import (
    InvalidInputError,
    StoreBusyError,
    StoreMismatchError,
    StoreNotFoundError,
)
from fusionrag_integrations.store.generations import collect_generations, directory_of
from fusionrag_integrations.store.stored_info import stored_info
from fusionrag_integrations.store.verify import find_damage
from tests.conftest import all_records
from tests.store.published.sharing import ask, live_keys, same, towns
from tests.tiny_models import COMMON, heads
from tests.tiny_tokenizers import byte_level_tokenizer


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model, with other weights, heads and tokens."""
    path = tmp_path_factory.mktemp("other-llama")
    tokenizer = byte_level_tokenizer(chat=True, vocabulary=400)
    torch.manual_seed(1)
    config = COMMON | {"vocab_size": len(tokenizer), "max_position_embeddings": 2048}
    LlamaForCausalLM(LlamaConfig(**config, **heads(4, 1))).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(params=["directory", "url"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("FUSIONRAG_CACHE", str(tmp_path / "cache"))
    return str(tmp_path / "store") if request.param == "directory" else f"file://{tmp_path}/shared"


@pytest.fixture
def old(model_dir: Path, place: str) -> FusionEngine:
    engine = FusionEngine.from_pretrained(model_dir, store=place, chunk_tokens=48)
    engine.ingest(towns(3))
    return engine


def test_it_is_what_an_ingest_by_the_other_model_makes(
    old: FusionEngine, other: Path, place: str, tmp_path: Path
) -> None:
    before, chunks = ask(old), [r.chunk for r in all_records(old.store.catalog)]
    report = reindex(other, store=place)
    assert (report.documents_new, report.isolated_computed) == (3, len(chunks))
    with (
        FusionEngine.from_pretrained(other, store=place) as new,
        FusionEngine.from_pretrained(other, store=tmp_path / "fresh", chunk_tokens=48) as fresh,
    ):
        fresh.ingest(towns(3))
        assert [r.chunk for r in all_records(new.store.catalog)] == chunks
        assert live_keys(new) == live_keys(fresh)
        wanted = ask(fresh)
        assert wanted.usage.reused_tokens > 0
        assert same(ask(new), wanted)
        assert new.ingest(towns(3)).documents_unchanged == 3
    assert same(ask(old), before)  # which was open all the time
    assert stored_info(place).model_source == str(other)


def test_the_old_one_is_refused_its_old_model_afterwards(
    old: FusionEngine, other: Path, model_dir: Path, place: str
) -> None:
    reindex(other, store=place)
    with pytest.raises(StoreMismatchError, match="was made by"):
        FusionEngine.from_pretrained(model_dir, store=place)
    if place.startswith("file:"):
        before = ask(old)
        with pytest.raises(StoreMismatchError, match="Open the store anew"):
            old.refresh()
        assert same(ask(old), before)


def test_another_format_of_the_same_model(old: FusionEngine, model_dir: Path, place: str) -> None:
    reindex(model_dir, store=place, kv_format="int8")
    assert stored_info(place).kv_format == "int8"
    with FusionEngine.from_pretrained(model_dir, store=place) as new:
        assert ask(new).missed_chunks == 0


def test_an_interrupted_one_is_gone_on_with(
    old: FusionEngine, other: Path, place: str, model_dir: Path
) -> None:
    before = ask(old)

    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "fused" and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reindex(other, store=place, progress=interrupt)
    with FusionEngine.from_pretrained(model_dir, store=place) as still:
        assert same(ask(still), before)
    assert reindex(other, store=place).isolated_computed == 0
    with FusionEngine.from_pretrained(other, store=place) as new:
        assert ask(new).missed_chunks == 0


def test_what_there_is_nothing_to_do_for(
    old: FusionEngine, model_dir: Path, place: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInputError, match="already one of"):
        reindex(model_dir, store=place)
    with pytest.raises(StoreNotFoundError):
        reindex(model_dir, store=tmp_path / "none")
    with pytest.raises(StoreMismatchError, match="no salt"):
        reindex(model_dir, store=place, kv_format="int8", salt="pepper")


def test_nothing_is_changed_meanwhile(
    old: FusionEngine, other: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusionrag_integrations.store.store.PATIENCE", 0.0)

    def change(stage: str, done: int, total: int) -> None:
        if stage == "fused":
            with pytest.raises(StoreBusyError):
                old.ingest(towns(4))

    reindex(other, store=place, progress=change)
    assert stored_info(place).model_source == str(other)


class TestDirectories:
    @pytest.fixture
    def place(self, tmp_path: Path) -> str:
        return str(tmp_path / "store")

    def test_what_was_there_is_collected(
        self, old: FusionEngine, other: Path, model_dir: Path, place: str
    ) -> None:
        root = Path(place)
        old.close()
        reindex(other, store=place)
        assert collect_generations(root, grace=3600) == []
        deleted = collect_generations(root, grace=0)
        assert root / "kv" in deleted
        assert sorted(path.name for path in root.iterdir()) == ["generations", "moved.json"]
        reindex(model_dir, store=place)
        reindex(other, store=place, kv_format="int8")
        assert len(collect_generations(root, grace=0)) == 2
        assert list(find_damage(root)) == []
        with FusionEngine.from_pretrained(other, store=place) as new:
            assert ask(new).missed_chunks == 0

    def test_what_is_being_made_stays(self, old: FusionEngine, other: Path, place: str) -> None:
        old.close()
        reindex(other, store=place)

        def collect(stage: str, done: int, total: int) -> None:
            if stage == "fused":
                with pytest.raises(StoreBusyError):
                    collect_generations(Path(place), grace=0)

        reindex(other, store=place, kv_format="int8", progress=collect)
        with FusionEngine.from_pretrained(other, store=place) as new:
            assert ask(new).missed_chunks == 0

    def test_a_store_that_was_never_moved_has_nothing_to_collect(
        self, old: FusionEngine, place: str
    ) -> None:
        assert collect_generations(Path(place), grace=0) == []
        assert directory_of(place) == Path(place)

    def test_what_is_left_is_a_store_of_its_own(
        self, old: FusionEngine, other: Path, place: str, tmp_path: Path
    ) -> None:
        reindex(other, store=place)
        moved = shutil.copytree(place, tmp_path / "elsewhere")
        with Store.open(moved) as store:
            assert len(store.search("fox", 3)) == 3
