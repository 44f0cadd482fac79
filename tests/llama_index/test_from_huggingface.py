"""LlamaIndex's own Hugging Face component, taken over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from llama_index.llms.huggingface import HuggingFaceLLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from fusionrag_integrations.demo import MODEL_DIR
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.llama_index import FusionRAGLLM


def held(**given: Any) -> HuggingFaceLLM:
    return HuggingFaceLLM(
        model=AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32),
        tokenizer=AutoTokenizer.from_pretrained(MODEL_DIR),
        max_new_tokens=12,
        **given,
    )


def test_it_answers_as_before(tmp_path: Path) -> None:
    theirs = held(generate_kwargs={"do_sample": False})
    expected = theirs.complete("The town of Pelfield").text
    ours = FusionRAGLLM.from_huggingface(theirs, store=tmp_path / "store", kv="none")
    with ours.engine:
        assert ours.complete("The town of Pelfield").text == expected
        assert ours.metadata.num_output == 12


def test_prompts_are_rendered_as_before(tmp_path: Path) -> None:
    theirs = held(
        system_prompt="Be brief.",
        completion_to_prompt=lambda text: f"Question: {text}\nAnswer:",
        is_chat_model=True,
    )
    expected = theirs.complete("Who lives there?").text
    ours = FusionRAGLLM.from_huggingface(theirs, store=tmp_path / "store", kv="none")
    with ours.engine:
        assert ours.complete("Who lives there?").text == expected
        assert ours.system_prompt == "Be brief."


def test_settings_are_carried_over(tmp_path: Path) -> None:
    theirs = held(generate_kwargs={"do_sample": True, "temperature": 0.7, "top_k": 50})
    ours = FusionRAGLLM.from_huggingface(theirs, store=tmp_path / "store", ratio=0.05)
    with ours.engine:
        assert (ours.temperature, ours.top_k, ours.max_tokens, ours.ratio) == (0.7, 50, 12, 0.05)


def test_what_has_no_counterpart_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"stopping_ids=.7.*eos_token_id"):
        FusionRAGLLM.from_huggingface(held(stopping_ids=[7]), store=tmp_path / "store")
    with pytest.raises(InvalidInputError, match=r"penalty_alpha=0\.6, which has no counterpart"):
        FusionRAGLLM.from_huggingface(
            held(generate_kwargs={"penalty_alpha": 0.6}), store=tmp_path / "store"
        )
    with pytest.raises(InvalidInputError, match="give a HuggingFaceLLM"):
        FusionRAGLLM.from_huggingface(7, store=tmp_path / "store")
