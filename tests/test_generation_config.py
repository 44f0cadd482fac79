"""What a model's generation config asks for: answers are those of transformers' own `generate`."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from fusionrag_integrations import AnswerSettings, FusionEngine
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.prompt import encode, question_prompt
from tests.conftest import town

LENGTH = 12
PROMPT = question_prompt([town(0).text, town(1).text], "Which house stands in town number 1?")
BASE = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
REPEATING = {"repetition_penalty": 0.2}  # for the prompt's tokens, and for repeating itself

# What a config may ask for, given the tokens [LENGTH] that are generated without it.
ASKED: dict[str, Callable[[list[int]], dict[str, Any]]] = {
    "no_repeat_ngram_size": lambda ids: {"no_repeat_ngram_size": 2, **REPEATING},
    "min_new_tokens": lambda ids: {"eos_token_id": ids[1], "min_new_tokens": 5},
    "min_length": lambda ids: {"eos_token_id": ids[1], "min_length": 10_000},
    "suppress_tokens": lambda ids: {"suppress_tokens": ids[:2]},
    "begin_suppress_tokens": lambda ids: {"begin_suppress_tokens": ids[:1]},
    "bad_words_ids": lambda ids: {"bad_words_ids": [ids[1:3], [ids[5]]]},
    "repetition_penalty": lambda ids: REPEATING,
    "encoder_repetition_penalty": lambda ids: {"encoder_repetition_penalty": 50.0},
    "encoder_no_repeat_ngram_size": lambda ids: {"encoder_no_repeat_ngram_size": 2, **REPEATING},
    "sequence_bias": lambda ids: {"sequence_bias": [[ids[:1], -20.0], [[77], 4.0]]},
    "forced_bos_token_id": lambda ids: {"forced_bos_token_id": 9, "forced_eos_token_id": 2},
    "forced_eos_token_id": lambda ids: {"forced_eos_token_id": 2},
    "exponential_decay_length_penalty": lambda ids: {"exponential_decay_length_penalty": (2, 1.9)},
    "several_end_tokens": lambda ids: {"eos_token_id": [2, ids[3]]},
    "remove_invalid_values": lambda ids: {"remove_invalid_values": True, "suppress_tokens": ids},
    "guidance_scale": lambda ids: {"guidance_scale": 3.0},
    "watermarking": lambda ids: {"watermarking_config": {"bias": 5.0}},
    "sampling_flags": lambda ids: {
        **{"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.9, "min_p": 0.1},
        "suppress_tokens": ids[:1],
    },
    "lengths": lambda ids: {"max_length": 5, "max_new_tokens": 3, "suppress_tokens": ids[:1]},
    "several": lambda ids: {
        **{"no_repeat_ngram_size": 2, "repetition_penalty": 1.5, "min_new_tokens": 6},
        **{"eos_token_id": [ids[1], ids[2]], "suppress_tokens": [ids[0]]},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def engine(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> FusionEngine:
    store = tmp_path_factory.mktemp("generation") / "store"
    engine = FusionEngine.from_pretrained(model_dir, store=store, chunk_tokens=48)
    engine.ingest([town(0), town(1)])
    return engine


@pytest.fixture(scope="module")
def plain(model_dir: Path) -> PreTrainedModel:
    """The same model, which our package never sees."""
    return AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()


def generated(plain: PreTrainedModel, engine: FusionEngine, config: GenerationConfig) -> list[int]:
    plain.generation_config = config
    ids = torch.tensor([encode(engine.model.tokenizer, PROMPT).token_ids])
    out = plain.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=LENGTH,
        tokenizer=engine.model.tokenizer,
    )
    return out[0, ids.shape[1] :].tolist()


def answered(engine: FusionEngine, config: GenerationConfig, **settings: Any) -> list[int]:
    engine.model.hf.generation_config = config
    settings = {"kv": "none", "max_tokens": LENGTH} | settings
    return list(engine.answer(PROMPT, AnswerSettings(**settings)).token_ids)


def free(plain: PreTrainedModel, engine: FusionEngine) -> list[int]:
    """What is generated where the config asks for nothing."""
    return generated(plain, engine, GenerationConfig(**BASE))


@pytest.mark.filterwarnings("ignore:Unfeasible length")  # the longer one of these is meant so
@pytest.mark.parametrize("name", ASKED)
def test_answers_are_those_of_generate(
    name: str, plain: PreTrainedModel, engine: FusionEngine
) -> None:
    """Under full attention, and where all is recomputed: the whole prompt is what came before."""
    without = free(plain, engine)
    config = GenerationConfig(**BASE | ASKED[name](without))
    expected = generated(plain, engine, config)
    assert expected != without  # so it isn't for nothing
    assert answered(engine, config) == expected
    assert answered(engine, config, kv="fused", selector="all") == expected


def test_stop_strings(plain: PreTrainedModel, engine: FusionEngine) -> None:
    """They end the answer as they do in `generate`, and belong to it."""
    words = {"suppress_tokens": list(range(270))}  # no single bytes
    without = generated(plain, engine, GenerationConfig(**BASE | words))
    word = engine.model.tokenizer.decode(without[2:4])
    config = GenerationConfig(**BASE | words, stop_strings=[word])
    expected = generated(plain, engine, config)
    assert len(expected) < len(without)
    engine.model.hf.generation_config = config
    answer = engine.answer(PROMPT, AnswerSettings(kv="none", max_tokens=LENGTH))
    assert list(answer.token_ids) == expected
    assert answer.finish_reason == "stop"
    assert answer.text == engine.model.tokenizer.decode(expected, skip_special_tokens=True)


def test_time_that_is_up_ends_an_answer(engine: FusionEngine) -> None:
    engine.model.hf.generation_config = GenerationConfig(**BASE, max_time=1e-9)
    answer = engine.answer(PROMPT, AnswerSettings(kv="none", max_tokens=LENGTH))
    assert (len(answer.token_ids), answer.finish_reason) == (1, "length")


def test_sampling_has_what_the_config_asks_for(
    engine: FusionEngine, plain: PreTrainedModel
) -> None:
    """Only the likeliest token is above such a `min_p`."""
    config = GenerationConfig(**BASE, min_p=1.0)
    expected = generated(plain, engine, config)
    for seed in range(3):
        assert answered(engine, config, temperature=5.0, seed=seed) == expected


@pytest.mark.parametrize(
    "asked",
    [
        {"num_beams": 4},
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
        {"penalty_alpha": 0.6, "top_k": 4},
        {"dola_layers": "low"},
        {"prompt_lookup_num_tokens": 3},
        {"assistant_early_exit": 1},
        {"num_beams": 2, "num_return_sequences": 2},
        {"force_words_ids": [[5]], "num_beams": 2},
        {"token_healing": True},
        {"cache_implementation": "quantized"},
    ],
    ids=lambda asked: next(iter(asked)),
)
def test_what_is_not_supported_is_named_and_passed_over(
    asked: dict[str, Any],
    plain: PreTrainedModel,
    engine: FusionEngine,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What else the config asks for still holds; it is said once, not with every answer."""
    suppressed = {"suppress_tokens": free(plain, engine)[:1]}
    expected = generated(plain, engine, GenerationConfig(**BASE | suppressed))
    config = GenerationConfig(**BASE | suppressed | asked)
    with caplog.at_level(logging.WARNING, "fusionrag_integrations"):
        assert answered(engine, config) == answered(engine, config) == expected
    (said,) = [r.getMessage() for r in caplog.records if r.name.startswith("fusionrag")]
    assert next(iter(asked)) in said


def test_an_ordinary_config_says_nothing(
    engine: FusionEngine, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    asked = {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "max_length": 50}
    config = GenerationConfig(**BASE, **asked, cache_implementation="hybrid")
    caplog.set_level(logging.INFO)
    answered(engine, config)
    answered(engine, config, temperature=1.0, top_k=3, seed=1)
    assert not caplog.records
    assert not recwarn.list


def test_a_config_that_cannot_be_is_named(engine: FusionEngine) -> None:
    with pytest.raises(InvalidInputError, match="generation config"):
        answered(engine, GenerationConfig(**BASE, bad_words_ids=[7]))


def test_what_a_directory_ships_is_followed(model_dir: Path, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    shutil.copytree(model_dir, directory)
    GenerationConfig(**BASE, no_repeat_ngram_size=1, min_new_tokens=4).save_pretrained(directory)
    engine = FusionEngine.from_pretrained(directory, store=tmp_path / "store")
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    ids = torch.tensor([encode(AutoTokenizer.from_pretrained(directory), PROMPT).token_ids])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=LENGTH)
    answer = engine.answer(PROMPT, AnswerSettings(max_tokens=LENGTH))
    assert list(answer.token_ids) == out[0, ids.shape[1] :].tolist()
