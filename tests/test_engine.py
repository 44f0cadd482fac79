"""Opening a store with a model: what fits, what is refused and why, and what reopening keeps."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, MambaConfig

from fusionrag_integrations import AnswerSettings, Document, FusionEngine, Store
from fusionrag_integrations.engine import DEFAULT_CHUNK_TOKENS
from fusionrag_integrations.errors import (
    InvalidInputError,
    StoreError,
    StoreMismatchError,
    StoreNotFoundError,
    UnsupportedModelError,
)
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.ingest.mixtures import assembled
from fusionrag_integrations.prompt import question_prompt
from tests.conftest import all_records, town
from tests.test_prompt import set_clock
from tests.tiny_tokenizers import DATED_TEMPLATES, byte_level_tokenizer


class Letters:
    """An embedding of a user's own."""

    name = "letters"

    def embed_documents(self, texts: Sequence[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return [1.0, *(float(text.count(letter)) for letter in "aeiou")]


@pytest.fixture
def copy(model_dir: Path, tmp_path: Path) -> Path:
    """A copy of the model under the same name, to be changed."""
    return shutil.copytree(model_dir, tmp_path / "elsewhere" / model_dir.name)


class TestModels:
    def refuse(self, model: Path, store: Path, error: type[Exception], match: str) -> None:
        """Refused with this error, and without a trace of a store."""
        with pytest.raises(error, match=match):
            FusionEngine.from_pretrained(model, store=store)
        assert not store.exists()

    def test_a_directory_without_a_model(self, tmp_path: Path) -> None:
        self.refuse(tmp_path, tmp_path / "store", InvalidInputError, r"config\.json")

    def test_no_directory_at_all(self, tmp_path: Path) -> None:
        self.refuse(tmp_path / "none", tmp_path / "store", InvalidInputError, "not a model")

    def test_a_configuration_that_is_no_json(self, copy: Path, tmp_path: Path) -> None:
        (copy / "config.json").write_text("{")
        self.refuse(copy, tmp_path / "store", InvalidInputError, "not a model")

    def test_a_model_without_weights(self, copy: Path, tmp_path: Path) -> None:
        (copy / "model.safetensors").unlink()
        self.refuse(copy, tmp_path / "store", InvalidInputError, "can't be loaded")

    def test_an_unsupported_architecture_is_named(self, tmp_path: Path) -> None:
        MambaConfig().save_pretrained(tmp_path)
        reason = "'mamba' are not supported: state-space"
        self.refuse(tmp_path, tmp_path / "store", UnsupportedModelError, reason)

    def test_unknown_devices_and_dtypes(self, model_dir: Path, tmp_path: Path) -> None:
        for wrong in ({"device": "toaster"}, {"device": "mps"}, {"dtype": "int3"}):
            with pytest.raises(InvalidInputError, match="choose auto"):
                FusionEngine.from_pretrained(model_dir, store=tmp_path / "store", **wrong)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
    def test_a_device_that_is_not_there(self, model_dir: Path, tmp_path: Path) -> None:
        with pytest.raises(InvalidInputError, match="cuda"):
            FusionEngine.from_pretrained(model_dir, store=tmp_path / "store", device="cuda")


class TestAnotherModel:
    """A store belongs to the model that made it, whatever the model is called."""

    @pytest.fixture(autouse=True)
    def made(self, engine: FusionEngine) -> None:
        engine.ingest([town(0)])

    def refuse(self, model: Path, engine: FusionEngine, differs: str, **settings: Any) -> None:
        told = rf"made by .*tiny-llama.* What differs: {re.escape(differs)}\. Load"
        with pytest.raises(StoreMismatchError, match=told):
            FusionEngine.from_pretrained(model, store=engine.store.path, **settings)

    def test_other_weights(self, engine: FusionEngine, copy: Path) -> None:
        model = AutoModelForCausalLM.from_pretrained(copy)
        with torch.no_grad():
            model.model.layers[0].self_attn.k_proj.weight[0, 0] += 0.01
        model.save_pretrained(copy)
        self.refuse(copy, engine, "weights")

    def test_another_rope_base(self, engine: FusionEngine, copy: Path) -> None:
        config = json.loads((copy / "config.json").read_text())
        config["rope_parameters"]["rope_theta"] = 5_000.0
        (copy / "config.json").write_text(json.dumps(config))
        self.refuse(copy, engine, "configuration")

    def test_another_tokenizer(self, engine: FusionEngine, copy: Path) -> None:
        tokenizer = json.loads((copy / "tokenizer.json").read_text())
        tokenizer["model"]["merges"].pop()
        (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
        self.refuse(copy, engine, "tokenizer")

    def test_another_template(self, engine: FusionEngine, copy: Path) -> None:
        (copy / "chat_template.jinja").unlink()
        self.refuse(copy, engine, "ingest prefix")

    def test_another_precision(self, engine: FusionEngine, model_dir: Path) -> None:
        self.refuse(model_dir, engine, "dtype (float32 there, bfloat16 here)", dtype="bfloat16")

    def test_the_same_weights_from_elsewhere_fit(self, engine: FusionEngine, copy: Path) -> None:
        renamed = copy.rename(copy.with_name("other-name"))
        other = FusionEngine.from_pretrained(renamed, store=engine.store.path)
        assert other.ingest([town(0)]).documents_unchanged == 1


class TestStores:
    def test_reopening_keeps_everything(self, engine: FusionEngine, model_dir: Path) -> None:
        engine.ingest([town(0), town(1)])
        texts = [r.chunk.text for r in all_records(engine.store.catalog)]
        prompt, settings = question_prompt(texts, "Which house?"), AnswerSettings(max_tokens=8)
        before = engine.answer(prompt, settings)
        hits = engine.store.search("Town number 1", 4)
        engine.store.close()
        again = FusionEngine.from_pretrained(str(model_dir), store=str(engine.store.path))
        after = again.answer(prompt, settings)
        assert after.token_ids == before.token_ids
        assert (after.fused_chunks, after.isolated_chunks) == (5, 1)
        assert again.store.search("Town number 1", 4) == hits
        assert again.ingest([town(0), town(1)]).documents_unchanged == 2

    def test_a_corpus_opens_without_a_model(self, engine: FusionEngine) -> None:
        engine.ingest([town(0)])
        hits = Store.open(engine.store.path).search("river", 2)
        assert hits == engine.store.search("river", 2)
        assert all(hit.handle.fused_key for hit in hits)

    def test_a_corpus_of_no_store(self, tmp_path: Path) -> None:
        with pytest.raises(StoreNotFoundError, match="no store at"):
            Store.open(tmp_path / "none")
        assert not (tmp_path / "none").exists()

    def test_another_embedding_is_refused(self, engine: FusionEngine, model_dir: Path) -> None:
        path = engine.store.path
        with pytest.raises(StoreMismatchError, match=r"'lexical.*than 'letters'"):
            FusionEngine.from_pretrained(model_dir, store=path, embedding=Letters())
        with pytest.raises(StoreMismatchError, match=r"'lexical.*than 'letters'"):
            Store.open(path, Letters())

    def test_an_embedding_of_ones_own(self, model_dir: Path, tmp_path: Path) -> None:
        store = tmp_path / "store"
        engine = FusionEngine.from_pretrained(model_dir, store=store, embedding=Letters())
        engine.ingest([Document("a", "banana"), Document("o", "bonobo")])
        (hit,) = Store.open(store, Letters()).search("oooo", 1)
        assert hit.chunk.text == "bonobo"

    def test_what_is_no_embedding_is_refused(self, model_dir: Path, tmp_path: Path) -> None:
        with pytest.raises(InvalidInputError, match="not an embedding"):
            FusionEngine.from_pretrained(model_dir, store=tmp_path / "store", embedding="best")

    def test_other_chunk_tokens_are_refused(self, engine: FusionEngine, model_dir: Path) -> None:
        with pytest.raises(InvalidInputError, match=r"up to 48 tokens.*chunk_tokens=64"):
            FusionEngine.from_pretrained(model_dir, store=engine.store.path, chunk_tokens=64)
        same = FusionEngine.from_pretrained(model_dir, store=engine.store.path, chunk_tokens=48)
        assert same.store.catalog.info.chunk_tokens == 48

    def test_chunk_tokens_have_a_default(self, model_dir: Path, tmp_path: Path) -> None:
        engine = FusionEngine.from_pretrained(model_dir, store=tmp_path / "store")
        assert engine.store.catalog.info.chunk_tokens == DEFAULT_CHUNK_TOKENS

    @pytest.mark.parametrize("wrong", [0, 8, -1])
    def test_too_few_chunk_tokens_make_no_store(
        self, model_dir: Path, tmp_path: Path, wrong: int
    ) -> None:
        store = tmp_path / "store"
        with pytest.raises(InvalidInputError, match="at least 16"):
            FusionEngine.from_pretrained(model_dir, store=store, chunk_tokens=wrong)
        assert not store.exists()

    def test_another_format_is_refused(
        self, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr("fusionrag_integrations.ingest.model_facts.FORMAT_VERSION", 99)
            FusionEngine.from_pretrained(model_dir, store=tmp_path / "store").close()
        with pytest.raises(StoreMismatchError, match="format 99"):
            FusionEngine.from_pretrained(model_dir, store=tmp_path / "store")

    def test_a_file_is_no_store(self, model_dir: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(StoreError, match="file"):
            FusionEngine.from_pretrained(model_dir, store=tmp_path / "file")

    def test_a_damaged_catalog_is_named(self, engine: FusionEngine, model_dir: Path) -> None:
        engine.store.close()
        for path in engine.store.path.glob("catalog.sqlite*"):
            path.write_bytes(b"not a database" * 100)
        with pytest.raises(StoreError, match=r"catalog\.sqlite"):
            FusionEngine.from_pretrained(model_dir, store=engine.store.path)


def test_what_an_engine_says_of_its_model(engine: FusionEngine, model_dir: Path) -> None:
    assert engine.model_name == model_dir.name
    assert engine.context_window == 2048
    assert engine.has_chat_template
    text = "Mira makes lamps."
    assert engine.encode(text) == byte_level_tokenizer()(text).input_ids


def test_a_model_without_template_answers_strings(model_dir: Path, tmp_path: Path) -> None:
    model = shutil.copytree(model_dir, tmp_path / "plain")
    (model / "chat_template.jinja").unlink()
    engine = FusionEngine.from_pretrained(model, store=tmp_path / "store", chunk_tokens=48)
    assert not engine.has_chat_template
    engine.ingest([town(0)])
    texts = [r.chunk.text for r in all_records(engine.store.catalog)]
    answer = engine.answer("\n\n".join([*texts, "Which house?"]), AnswerSettings(max_tokens=2))
    assert (answer.fused_chunks, answer.isolated_chunks) == (2, 1)


def test_a_store_outlives_the_day_that_its_models_template_writes(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copy / "chat_template.jinja").write_text(DATED_TEMPLATES["given or asked"])
    answers = []
    for day in (1, 2):
        set_clock(monkeypatch, datetime(2031, 12, day, 13, day))
        engine = FusionEngine.from_pretrained(copy, store=tmp_path / "store", chunk_tokens=48)
        report = engine.ingest([town(0), town(1)])
        assert bool(report.isolated_computed) == (day == 1)
        texts = [r.chunk.text for r in all_records(engine.store.catalog)]
        prompt = question_prompt(texts, "Where is it?")
        answer = engine.answer(prompt, AnswerSettings(max_tokens=4))
        found = answer.usage.reused_tokens + answer.usage.recomputed_tokens
        assert found == sum(len(r.encoded.token_ids) for r in all_records(engine.store.catalog))
        assert (answer.usage.missed_tokens, answer.fallbacks) == (0, ())
        exact = engine.answer(prompt, AnswerSettings(ratio=1.0, selector="all", max_tokens=4))
        full = engine.answer(prompt, AnswerSettings(kv="none", max_tokens=4))
        assert exact.token_ids == full.token_ids
        assert exact.usage.prompt_tokens == full.usage.prompt_tokens
        answers.append(answer)
    assert answers[0].trace.text != answers[1].trace.text


def test_what_ingest_stores_is_the_same_on_every_day(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copy / "chat_template.jinja").write_text(DATED_TEMPLATES["given or asked"])
    stored, measured = [], []
    for day in (1, 2):
        set_clock(monkeypatch, datetime(2031, 12, day, 13, day))
        store = tmp_path / str(day)
        engine = FusionEngine.from_pretrained(copy, store=store, chunk_tokens=48)
        engine.ingest([town(0)])
        files = [file for file in (store / "kv").rglob("*") if file.is_file()]
        stored.append({file.relative_to(store): file.read_bytes() for file in files})
        records = all_records(engine.store.catalog)
        measured.append(assembled(engine.model, records).token_ids)  # for corrections
    assert stored[0] == stored[1]
    assert measured[0] == measured[1]


class TestTokenizerState:
    """What was last set on a tokenizer is no property of the model."""

    @pytest.fixture
    def cut_and_padded(self, copy: Path) -> Path:
        file = copy / "tokenizer.json"
        tokenizer = Tokenizer.from_file(str(file))
        tokenizer.enable_truncation(8)
        tokenizer.enable_padding(length=64, pad_id=0, pad_token="<pad>")
        tokenizer.save(str(file))
        return copy

    def test_a_store_opens_whatever_was_called(
        self, cut_and_padded: Path, model_dir: Path, tmp_path: Path
    ) -> None:
        model = CausalModel.load(cut_and_padded)
        signatures = []
        for call in (
            lambda: None,
            lambda: model.tokenizer("a", padding="max_length", max_length=9),
            lambda: model.tokenizer(["a", "a b"], padding=True, truncation=True, max_length=1),
            lambda: setattr(model.tokenizer, "padding_side", "left"),
            lambda: model.tokenizer.backend_tokenizer.enable_padding(length=7),
            lambda: model.tokenizer.backend_tokenizer.enable_truncation(3),
        ):
            call()
            engine = FusionEngine.open(model, tmp_path / "store")
            signatures.append(engine.store.catalog.info.signature)
            engine.store.close()
        fresh = FusionEngine.from_pretrained(model_dir, store=tmp_path / "fresh")
        assert {*signatures} == {fresh.store.catalog.info.signature}

    def test_no_text_is_cut_or_padded(
        self, cut_and_padded: Path, model_dir: Path, tmp_path: Path
    ) -> None:
        model = CausalModel.load(cut_and_padded)
        plain = FusionEngine.from_pretrained(model_dir, store=tmp_path / "plain", chunk_tokens=48)
        engine = FusionEngine.open(model, tmp_path / "store", chunk_tokens=48)
        tokens = []
        for one in (engine, plain):
            model.tokenizer(["a", "a b"], padding=True, truncation=True, max_length=2)
            one.ingest([town(0)])
            model.tokenizer.backend_tokenizer.enable_truncation(3)
            records = all_records(one.store.catalog)
            prompt = question_prompt([r.chunk.text for r in records], "Where is it?")
            model.tokenizer(["a", "a b"], padding="max_length", truncation=True, max_length=2)
            answer = one.answer(prompt, AnswerSettings(max_tokens=4))
            tokens.append(
                ([r.encoded.token_ids for r in records], answer.usage, answer.trace.offsets)
            )
        assert tokens[0] == tokens[1]


@pytest.mark.parametrize("by", [str, Path])
def test_a_relative_path_is_where_it_was_given(
    by: type, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Notebooks and daemons change their working directory."""
    here, there = tmp_path / "here", tmp_path / "there"
    for directory in (here, there):
        directory.mkdir()
    monkeypatch.chdir(here)
    engine = FusionEngine.from_pretrained(model_dir, store=by("store"), chunk_tokens=48)
    engine.ingest([town(0)])
    corpus = Store.open(by("store"))
    monkeypatch.chdir(there)
    engine.ingest([town(1), town(2)])
    assert engine.delete(["town-1"]) == 1
    texts = [record.chunk.text for record in all_records(engine.store.catalog)]
    prompt = question_prompt(texts, "Where is it?")
    assert engine.answer(prompt, AnswerSettings(max_tokens=2)).usage.reused_tokens > 0
    assert {hit.chunk.document_id for hit in corpus.search("town", 9)} == {"town-0", "town-2"}
    assert list(there.iterdir()) == []
    with pytest.raises(StoreError, match="is changing the store"), corpus.writing():
        engine.ingest([town(3)])


def test_delete_refuses_a_single_string(engine: FusionEngine) -> None:
    with pytest.raises(InvalidInputError, match="is 'town-1'; give a list of strings"):
        engine.delete("town-1")


def test_a_store_whose_making_was_cut_off_is_made(model_dir: Path, tmp_path: Path) -> None:
    """By a kill, or a full disk."""
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "catalog.sqlite").touch()
    with FusionEngine.from_pretrained(model_dir, store=tmp_path / "store") as engine:
        assert engine.ingest([town(0)]).documents_new == 1
