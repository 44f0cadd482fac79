"""Whole engines over models whose KV differs: what they answer is what their model does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fusionrag_integrations import AnswerSettings, FusionEngine
from fusionrag_integrations.engine.parts import CALIBRATION_FILE
from fusionrag_integrations.execution.devices import device_name
from fusionrag_integrations.prompt import ingest_surroundings
from fusionrag_integrations.store.calibration import Calibration, write_calibration
from tests.conftest import town
from tests.tiny_models import build_for
from tests.tiny_tokenizers import byte_level_tokenizer

TOKENIZER = byte_level_tokenizer(chat=True)
GREEDY = AnswerSettings(max_tokens=8, break_even=False)
FAMILIES = ("deepseek_v2", "glm4_moe_lite", "gemma4", "gemma4_shared", "gemma3")


def prompt(*towns: int) -> str:
    return "\n\n".join(town(number).text for number in towns) + "\n\nQuestion: Where?\nAnswer:"


@pytest.mark.parametrize("kv_format", [None, "int8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_everything_recomputed_is_full_attention(
    family: str, kv_format: str | None, tmp_path: Path
) -> None:
    hf = build_for(TOKENIZER, family)
    ids = TOKENIZER.apply_chat_template(
        [{"role": "user", "content": prompt(0, 2)}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    asked = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    expected = tuple(hf.generate(ids, **asked)[0, ids.shape[1] :].tolist())
    with FusionEngine.from_model(
        hf, TOKENIZER, store=tmp_path, chunk_tokens=48, kv_format=kv_format
    ) as engine:
        engine.ingest([town(number) for number in range(4)])
        for settings in (replace(GREEDY, kv="none"), replace(GREEDY, selector="all")):
            assert engine.answer(prompt(0, 2), settings).token_ids == expected
        texts = [prompt(0, 2), prompt(1, 3), prompt(2)]
        together = engine.answer_all(texts, GREEDY)
        assert all(answer.usage.reused_tokens for answer in together)
        for text, answer in zip(texts, together, strict=True):
            assert engine.answer(text, GREEDY).token_ids == answer.token_ids


@pytest.mark.usefixtures("beginnings_are_known")
@pytest.mark.parametrize("family", ["mistral_window", "llama_gqa2"])
def test_nothing_is_kept_of_a_prompt_whose_windows_have_forgotten_it(
    family: str, tmp_path: Path
) -> None:
    """A short prompt under full attention leaves only what its windows still see."""

    def messages(question: str) -> list[dict[str, str]]:
        rules = " ".join(f"Rule {n}: the quick fox sleeps by the old river." for n in range(20))
        return [{"role": "system", "content": rules}, {"role": "user", "content": question}]

    settings = AnswerSettings(max_tokens=8)
    hf = build_for(TOKENIZER, family)
    with FusionEngine.from_model(hf, TOKENIZER, store=tmp_path) as engine:
        expected = engine.answer(messages("Which city?"), replace(settings, kv="none")).token_ids
        signature = engine.model.signature(ingest_surroundings(TOKENIZER))
    short = {device_name(torch.device("cpu")): 1000}
    write_calibration(tmp_path / CALIBRATION_FILE, signature, Calibration((1,)), {}, short)
    with FusionEngine.from_model(hf, TOKENIZER, store=tmp_path) as engine:
        engine.answer(messages("Where is the fox? " + "And the old river? " * 9), settings)
        answer = engine.answer(messages("Which city?"), settings)
        assert answer.token_ids == expected
        assert (answer.usage.reused_tokens > 0) == (family == "llama_gqa2")
        turns = [*messages("Which city?"), {"role": "assistant", "content": answer.text}]
        turns.append({"role": "user", "content": "And the river?"})
        full = engine.answer(turns, replace(settings, kv="none"))
        # What comes behind a conversation sees only what its windows still hold.
        further = engine.answer(turns, settings)
        assert further.token_ids == full.token_ids
        assert further.usage.reused_tokens > 0
