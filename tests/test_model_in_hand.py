"""Models that are loaded already, as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fusionrag_integrations import AnswerSettings, FusionEngine
from fusionrag_integrations.demo import MODEL_DIR
from fusionrag_integrations.errors import InvalidInputError
from tests.conftest import town

ASKED = AnswerSettings(max_tokens=8)


@pytest.fixture(scope="module")
def tokenizer() -> object:
    return AutoTokenizer.from_pretrained(MODEL_DIR)


def load(**given: object) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32, **given)


def test_it_is_the_model_that_its_name_loads(tmp_path: Path, tokenizer: object) -> None:
    with FusionEngine.from_pretrained(MODEL_DIR, store=tmp_path / "store") as engine:
        engine.ingest([town(0)])
        expected = engine.answer("Who was it?", ASKED).text
    with FusionEngine.from_model(load(), tokenizer, store=tmp_path / "store") as engine:
        assert engine.answer("Who was it?", ASKED).text == expected
        assert engine.model_name == MODEL_DIR.name
        assert engine.store.catalog.info.model_source == str(MODEL_DIR.resolve())


def test_others_may_go_on_with_the_model(tmp_path: Path, tokenizer: object) -> None:
    model, inputs = load(), {"input_ids": torch.arange(5, 45)[None]}
    before = model(**inputs).logits
    said = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    with FusionEngine.from_model(model, tokenizer, store=tmp_path / "store") as engine:
        engine.ingest([town(0)])
        torch.testing.assert_close(model(**inputs).logits, before)
        assert torch.equal(model.generate(**inputs, max_new_tokens=8, do_sample=False), said)


@pytest.mark.parametrize("given", [None, "a name", torch.nn.Linear(1, 1)])
def test_anything_else_is_refused(given: object, tmp_path: Path, tokenizer: object) -> None:
    with pytest.raises(InvalidInputError, match="model is "):
        FusionEngine.from_model(given, tokenizer, store=tmp_path / "store")
    with pytest.raises(InvalidInputError, match="tokenizer is "):
        FusionEngine.from_model(load(), given, store=tmp_path / "store")
    assert not (tmp_path / "store").exists()
