"""LangChain's own Hugging Face components, taken over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from langchain_huggingface import ChatHuggingFace, HuggingFacePipeline
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from fusionrag_integrations.demo import MODEL_DIR
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.langchain import ChatFusionRAG, FusionRAGLLM

GREEDY = {"do_sample": False, "max_new_tokens": 12}


def piped(**given: Any) -> HuggingFacePipeline:
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    made = pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu", **given)
    return HuggingFacePipeline(pipeline=made)


def test_a_pipeline_answers_as_before(tmp_path: Path) -> None:
    theirs = piped(**GREEDY, return_full_text=False)
    expected = theirs.invoke("The town of Pelfield")
    ours = FusionRAGLLM.from_huggingface(theirs, store=tmp_path / "store", kv="none")
    with ours.engine:
        assert ours.invoke("The town of Pelfield") == expected
        assert ours.max_tokens == 12
        assert ours.temperature == 0.0


def test_a_pipeline_by_name_answers_as_before(tmp_path: Path) -> None:
    theirs = HuggingFacePipeline.from_model_id(
        str(MODEL_DIR), "text-generation", pipeline_kwargs=GREEDY | {"return_full_text": False}
    )
    expected = theirs.invoke("The town of Pelfield")
    ours = FusionRAGLLM.from_huggingface(theirs, store=tmp_path / "store", kv="none")
    with ours.engine:
        assert ours.invoke("The town of Pelfield") == expected


def test_a_chat_answers_as_before(tmp_path: Path) -> None:
    theirs = ChatHuggingFace(llm=piped(**GREEDY, return_full_text=False))
    ours = ChatFusionRAG.from_huggingface(theirs, store=tmp_path / "store", kv="none")
    with ours.engine:
        assert ours.invoke("Who lives there?").content == theirs.invoke("Who lives there?").content


def test_settings_are_carried_over_and_can_be_changed(tmp_path: Path) -> None:
    theirs = piped(do_sample=True, temperature=0.5, top_p=0.9, top_k=7, repetition_penalty=1.1)
    ours = FusionRAGLLM.from_huggingface(theirs, store=tmp_path / "store", ratio=0.3, top_p=1.0)
    with ours.engine:
        assert (ours.temperature, ours.top_p, ours.top_k) == (0.5, 1.0, 7)
        assert (ours.repetition_penalty, ours.ratio) == (1.1, 0.3)


def test_a_pipeline_without_settings_samples_as_it_did(tmp_path: Path) -> None:
    ours = FusionRAGLLM.from_huggingface(piped(), store=tmp_path / "store")
    with ours.engine:
        assert (ours.max_tokens, ours.temperature, ours.top_k) == (16, 0.7, 50)  # 16 is its model's


def test_what_has_no_counterpart_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="num_beams=3, which has no counterpart"):
        FusionRAGLLM.from_huggingface(piped(num_beams=3), store=tmp_path / "store")
    with pytest.raises(InvalidInputError, match="eos_token_id=7, which has no counterpart"):
        FusionRAGLLM.from_huggingface(piped(eos_token_id=7), store=tmp_path / "store")
    with pytest.raises(InvalidInputError, match="give a HuggingFacePipeline"):
        FusionRAGLLM.from_huggingface("a model", store=tmp_path / "store")
    with pytest.raises(InvalidInputError, match="bound to settings"):
        FusionRAGLLM.from_huggingface(piped().bind(stop=["e"]), store=tmp_path / "store")
    with pytest.raises(InvalidInputError, match="rate"):
        FusionRAGLLM.from_huggingface(piped(), store=tmp_path / "store", rate=0.3)
