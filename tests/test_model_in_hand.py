"""Models that are loaded already, as they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertForMaskedLM,
    PreTrainedModel,
    T5ForConditionalGeneration,
)

from fusionrag_integrations import AnswerSettings, FusionEngine
from fusionrag_integrations.demo import MODEL_DIR
from fusionrag_integrations.errors import (
    InvalidInputError,
    StoreError,
    StoreMismatchError,
    UnsupportedModelError,
)
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.execution.hf.plain_model import PlainModel
from tests.conftest import town
from tests.tiny_models import build, of_text

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


def test_a_forward_of_its_own_changes_nothing(tmp_path: Path, tokenizer: object) -> None:
    """As `model.forward = torch.compile(model.forward)` sets it, over a store that is there."""
    with FusionEngine.from_model(load(), tokenizer, store=tmp_path / "store") as engine:
        engine.ingest([town(0)])
        expected = engine.answer("Who was it?", ASKED).text
    model = load()
    for module in (model, model.model):
        module.forward = lambda *args, _own=module.forward, **given: _own(*args, **given)
    with FusionEngine.from_model(model, tokenizer, store=tmp_path / "store") as engine:
        assert engine.answer("Who was it?", ASKED).text == expected
        assert engine.check(2).exact


def test_another_attention_is_noticed(tmp_path: Path, tokenizer: object) -> None:
    model = load()
    with FusionEngine.from_model(model, tokenizer, store=tmp_path / "store") as engine:
        model.set_attn_implementation("eager")
        for use in (lambda: engine.answer("Who was it?"), lambda: engine.ingest([town(0)])):
            with pytest.raises(StoreError, match=r"attention of .* was changed to 'eager'"):
                use()
        model.set_attn_implementation("fusionrag")
        engine.ingest([town(0)])


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.model.layers[0].self_attn.k_proj.weight.mul_(-1.0),
        lambda model: model.load_state_dict(model.state_dict()),
        lambda model: model.to(torch.bfloat16),
    ],
)
def test_other_weights_are_noticed(
    tmp_path: Path, tokenizer: object, change: Callable[[Any], object]
) -> None:
    model = load()
    with FusionEngine.from_model(model, tokenizer, store=tmp_path / "store") as engine:
        with torch.no_grad():
            change(model)
        for use in (lambda: engine.answer("Who was it?"), lambda: engine.ingest([town(0)])):
            with pytest.raises(StoreError, match=r"weights or adapters of .* were changed"):
                use()


def test_it_is_as_it_was_where_it_is_refused(tmp_path: Path, tokenizer: object) -> None:
    with FusionEngine.from_model(load(), tokenizer, store=tmp_path / "store"):
        pass
    other = load(attn_implementation="eager").train()
    with torch.no_grad():
        other.lm_head.weight.add_(1.0)
    with pytest.raises(StoreMismatchError):
        FusionEngine.from_model(other, tokenizer, store=tmp_path / "store")
    assert other.config._attn_implementation == "eager"
    assert other.training


def test_padded_batches_of_others_stay_numbers() -> None:
    """Gemma 2's soft caps are computed by hand, and its rows of padding see nothing."""
    hf = build("gemma2")
    ids = torch.arange(3, 23).view(2, 10)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    hf.set_attn_implementation("eager")
    expected = hf(input_ids=ids, attention_mask=mask).logits
    found = CausalModel(hf, None, "gemma2").hf(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1, 4:], expected[1, 4:])


def test_models_of_other_kinds_are_refused(tokenizer: object) -> None:
    with pytest.raises(UnsupportedModelError, match="doesn't go on with a text"):
        CausalModel.of(load().model, tokenizer)
    with pytest.raises(UnsupportedModelError, match="multimodal"):
        CausalModel.of(of_text("llava"), tokenizer)


@pytest.mark.parametrize("kind", [T5ForConditionalGeneration, BertForMaskedLM])
def test_what_fills_gaps_or_translates_is_refused_without_kv_too(
    kind: type[PreTrainedModel], tokenizer: object
) -> None:
    sizes = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    hf = kind(kind.config_class(**sizes))
    with pytest.raises(UnsupportedModelError, match="doesn't go on with a text"):
        PlainModel.of(hf, tokenizer)


@pytest.mark.parametrize("given", [None, "a name", torch.nn.Linear(1, 1)])
def test_anything_else_is_refused(given: object, tmp_path: Path, tokenizer: object) -> None:
    with pytest.raises(InvalidInputError, match="model is "):
        FusionEngine.from_model(given, tokenizer, store=tmp_path / "store")
    with pytest.raises(InvalidInputError, match="tokenizer is "):
        FusionEngine.from_model(load(), given, store=tmp_path / "store")
    assert not (tmp_path / "store").exists()
