"""Checkpoints with quantised weights are the models that transformers makes of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from fusionrag_integrations import AnswerSettings, Document, FusionEngine
from fusionrag_integrations.demo import MODEL_DIR
from fusionrag_integrations.errors import StoreMismatchError
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.prompt import question_prompt
from tests.quantised.checkpoints import WRITERS
from tests.tiny_models import build
from tests.tiny_tokenizers import byte_level_tokenizer

TEXTS = (
    "Before the war people talked about the weather. In spring the river rose and the fields stood "
    "under water. For many years children played behind the church. Baru Mills makes silver bowls.",
    "That winter the trains ran slowly and the letters came late. Pasi Press is known for its "
    "folding clocks. After the flood people talked about the weather and the price of bread.",
)
QUESTION = "Pasi Press is known for its what?"
TOKENS = 6


class Checkpoint:
    """One of a kind, what it must be, and an engine with two documents."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.kind = kind
        self.expected = WRITERS[kind](directory / "model").eval()
        self.model = CausalModel.load(directory / "model", "cpu")
        self.store = directory / "store"
        self.engine = FusionEngine.open(self.model, store=self.store)
        self.engine.ingest([Document(id=text[:9], text=text) for text in TEXTS])


@pytest.fixture(scope="module", params=WRITERS)
def checkpoint(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Checkpoint]:
    made = Checkpoint(request.param, tmp_path_factory.mktemp("quantised"))
    with made.engine:
        yield made


def greedy(model: PreTrainedModel, token_ids: list[int]) -> list[int]:
    found = model.generate(
        torch.tensor([token_ids]), max_new_tokens=TOKENS, do_sample=False, num_beams=1
    )
    return [int(one) for one in found[0, len(token_ids) :]]


def test_answers_are_those_of_the_quantised_model(checkpoint: Checkpoint) -> None:
    engine, prompt = checkpoint.engine, question_prompt(TEXTS, QUESTION)
    token_ids = engine.load(prompt, AnswerSettings()).prompt.token_ids
    expected = greedy(checkpoint.expected, list(token_ids))
    recomputed, full = (
        engine.answer(prompt, AnswerSettings(max_tokens=TOKENS, **how))
        for how in ({"ratio": 1.0}, {"kv": "none"})
    )
    assert list(recomputed.token_ids) == list(full.token_ids) == expected
    assert recomputed.usage.recomputed_tokens > 20


def test_a_model_that_has_answered_is_the_same(checkpoint: Checkpoint) -> None:
    checkpoint.engine.answer(question_prompt(TEXTS, QUESTION), AnswerSettings(max_tokens=2))
    with FusionEngine.open(checkpoint.model, store=checkpoint.store):
        pass
    with FusionEngine.from_pretrained(
        checkpoint.model.source, store=checkpoint.store, device="cpu"
    ):
        pass


def test_kv_of_another_quantisation_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    kinds = list(WRITERS)
    another = kinds[kinds.index(checkpoint.kind) - 1]
    WRITERS[another](tmp_path / "another")
    for directory in (tmp_path / "another", MODEL_DIR):
        with pytest.raises(StoreMismatchError, match=r"What differs: .*(quantisation|weights)"):
            FusionEngine.from_pretrained(directory, store=checkpoint.store, device="cpu")


def test_a_model_in_hand_that_has_computed_is_the_same(checkpoint: Checkpoint) -> None:
    greedy(checkpoint.expected, [1, 2, 3])
    model, tokenizer = checkpoint.expected, checkpoint.model.tokenizer
    with FusionEngine.from_model(model, tokenizer, store=checkpoint.store):
        pass


def test_the_page_lists_what_is_tested() -> None:
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    table = page.split("| tested with every release, on a CPU |")[1].split("\n\n")[0]
    assert re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE)[1:] == list(WRITERS)


def test_buffers_beside_quantised_weights_belong_to_the_model(tmp_path: Path) -> None:
    """Gemma 4 scales each layer by one; quantisation in 4 bits leaves it as it is."""
    hf = build("gemma4", hidden_size=128, intermediate_size=128)
    signatures = []
    for scale in (1.0, 3.0):
        hf.model.layers[0].layer_scalar.fill_(scale)
        hf.save_pretrained(tmp_path)
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
        model = AutoModelForCausalLM.from_pretrained(
            tmp_path, quantization_config=config, dtype=torch.float32
        )
        signatures.append(CausalModel(model, byte_level_tokenizer(), "scaled").signature(""))
    assert signatures[0] != signatures[1]
