"""Models with quantised weights, as torchao makes them, which run on a CPU."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torchao.quantization import (
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    quantize_,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from fusionrag_integrations import AnswerSettings, FusionEngine
from fusionrag_integrations.demo import MODEL_DIR
from fusionrag_integrations.errors import StoreMismatchError
from fusionrag_integrations.execution.hf.model import CausalModel
from tests.conftest import town

QUANTISATIONS = {
    "int8 weights": Int8WeightOnlyConfig,
    "int8 weights and activations": Int8DynamicActivationInt8WeightConfig,
}
QUESTION = "Where was the mayor born?"


def quantised(model: PreTrainedModel, kind: str) -> PreTrainedModel:
    copied = deepcopy(model)
    quantize_(copied.base_model, QUANTISATIONS[kind]())
    return copied


@pytest.fixture(scope="module")
def plain() -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    return model


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MODEL_DIR)


@pytest.mark.parametrize("kind", QUANTISATIONS)
def test_answers_are_those_of_the_quantised_model(
    kind: str, plain: PreTrainedModel, tokenizer: Any, tmp_path: Path
) -> None:
    model = quantised(plain, kind)
    with FusionEngine.from_model(model, tokenizer, store=tmp_path / "store") as engine:
        engine.ingest([town(number) for number in range(3)])
        assert engine.model.dtype == torch.float32
        report = engine.check(4)
        assert report.exact


@pytest.mark.parametrize("kind", QUANTISATIONS)
def test_kv_of_another_quantisation_is_a_miss(
    kind: str, plain: PreTrainedModel, tokenizer: Any, tmp_path: Path
) -> None:
    with FusionEngine.from_model(quantised(plain, kind), tokenizer, store=tmp_path / "store"):
        pass
    with FusionEngine.from_model(quantised(plain, kind), tokenizer, store=tmp_path / "store"):
        pass  # quantised again, it is the same model
    other = next(one for one in QUANTISATIONS if one != kind)
    for another in (plain, quantised(plain, other)):
        with pytest.raises(StoreMismatchError, match=r"What differs: (quantisation \(|weights)"):
            FusionEngine.from_model(deepcopy(another), tokenizer, store=tmp_path / "store")


@pytest.mark.smollm2
@pytest.mark.slow
def test_a_pretrained_model_answers_as_its_own_full_attention(
    pretrained: CausalModel, tmp_path: Path
) -> None:
    model = quantised(pretrained.hf, "int8 weights")
    with FusionEngine.from_model(model, pretrained.tokenizer, store=tmp_path / "store") as engine:
        engine.ingest([town(0), town(1)])
        asked = "\n\n".join([*(town(number).text for number in range(2)), QUESTION])
        recomputed, full = (
            engine.answer(asked, AnswerSettings(max_tokens=8, **how))
            for how in ({"ratio": 1.0}, {"kv": "none"})
        )
        assert recomputed.text == full.text
        assert recomputed.usage.recomputed_tokens > 100
