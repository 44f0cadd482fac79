"""How the demo's model and data are made: generator, packing, initial circuit, training."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fusionrag_integrations.demo import train as training
from fusionrag_integrations.demo.names import draw_entity, is_held_out
from fusionrag_integrations.demo.packing import CONTEXT, IGNORED, collate, draw_sample
from fusionrag_integrations.demo.prompts import DEFAULT, FORMATS
from fusionrag_integrations.demo.train import Stage, new_model, train
from fusionrag_integrations.demo.train_tokenizer import build
from fusionrag_integrations.demo.world import Style, build_world

STYLE = Style(held_out_names=False, held_out_wordings=False, fillers=(0, 2))


@pytest.mark.parametrize("kind", ["person", "company", "place", "thing"])
def test_training_and_evaluation_share_no_names(kind: str) -> None:
    draw = random.Random(0)
    seen = {draw_entity(draw, kind, held_out=False).name for _ in range(300)}  # type: ignore[arg-type]
    held = {draw_entity(draw, kind, held_out=True).name for _ in range(300)}  # type: ignore[arg-type]
    assert not seen & held
    assert all(is_held_out(name) for name in held)


def test_each_question_has_one_answer_in_its_world() -> None:
    documents, questions = build_world(random.Random(1), 60, STYLE)
    facts = {(f.subject.name, f.relation.verb): f.answer for d in documents for f in d.facts}
    assert len(facts) == sum(len(d.facts) for d in documents)
    for question in questions:
        if question.kind != "bridge":
            (answer,) = (
                a for (name, verb), a in facts.items() if question.cloze == f"{name} {verb}"
            )
            assert answer == question.answer


def test_words_get_the_same_tokens_wherever_they_stand() -> None:
    tokenizer = build()
    name = tokenizer("Tia Rundo", add_special_tokens=False).input_ids
    inside = tokenizer("by\nTia Rundo.", add_special_tokens=False).input_ids
    assert name == inside[-len(name) - 1 : -1]
    text = "She was born in Pelford.\n\nIt makes 12 lamps, naïve — ok?"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
@torch.inference_mode()
def test_a_packed_question_reads_as_if_asked_alone(form: object) -> None:
    tokenizer = build()
    torch.manual_seed(0)
    model = new_model(tokenizer).eval()
    packed = draw_sample(random.Random(3), tokenizer, 2, STYLE, form, 3, bridges=True)  # type: ignore[arg-type]
    batch = collate([packed], tokenizer.pad_token_id)
    together = model(
        input_ids=batch.token_ids, attention_mask=batch.mask, position_ids=batch.positions
    ).logits[0]
    for number in range(1, len(packed.questions) + 1):
        own = [i for i, s in enumerate(packed.segments) if s in (CONTEXT, number)]
        alone = model(input_ids=batch.token_ids[:, own]).logits[0]
        torch.testing.assert_close(together[own], alone, rtol=0.0, atol=1e-4)


def test_a_packed_prompt_is_what_the_template_makes() -> None:
    tokenizer = build()
    documents, questions = build_world(random.Random(4), 2, STYLE)
    packed = training.draw_sample(random.Random(4), tokenizer, 2, STYLE, DEFAULT, 1, bridges=True)
    asked = packed.questions[0]
    paragraphs = [p for d in documents for p in d.paragraphs]
    assert asked.text in [q.text for q in questions]
    prompt = tokenizer.apply_chat_template(
        DEFAULT.messages(paragraphs, asked.text), add_generation_prompt=True, return_dict=False
    )
    answer = tokenizer(asked.answer, add_special_tokens=False).input_ids
    assert packed.token_ids == [*prompt, *answer]
    labels = [label for label in packed.labels if label != IGNORED]
    assert labels == [*answer, tokenizer.eos_token_id]


@torch.inference_mode()
def test_a_new_model_looks_back_and_matches() -> None:
    tokenizer = build()
    torch.manual_seed(0)
    model = new_model(tokenizer).eval()
    model.set_attn_implementation("eager")
    once = random.Random(0).sample(range(262, len(tokenizer)), 30)
    attention = model(input_ids=torch.tensor([once * 2]), output_attentions=True).attentions
    looking_back = attention[0][0, 0].diagonal(-1)[5:].mean()
    matching = attention[1][0, 0].diagonal(-29)[5:].mean()  # behind the same token, 30 before
    assert looking_back > 0.4
    assert matching > 3 / 60  # three times what even attention would give


def test_training_resumes_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", 2)
    stages = (
        Stage("copy", 2, 2),
        Stage("formats", 2, 2, documents=(1, 2), questions=2, cloze_share=0.5),
    )
    monkeypatch.setattr(training, "STAGES", stages)
    train(tmp_path / "whole", seed=0, peak=1e-3, resume=False)

    class StopError(Exception):
        pass

    def interrupt(*_: object) -> None:
        if stage_seen.pop() == "formats":
            raise StopError

    stage_seen: list[str] = []
    draw_batch = training.draw_batch

    def watched(draw: random.Random, stage: Stage, tokenizer: object) -> object:
        stage_seen.append(stage.name)
        interrupt()
        return draw_batch(draw, stage, tokenizer)

    monkeypatch.setattr(training, "draw_batch", watched)
    with pytest.raises(StopError):
        train(tmp_path / "resumed", seed=0, peak=1e-3, resume=False)
    monkeypatch.setattr(training, "draw_batch", draw_batch)
    train(tmp_path / "resumed", seed=0, peak=1e-3, resume=True)

    whole = load_file(tmp_path / "whole" / "export" / "model.safetensors")
    resumed = load_file(tmp_path / "resumed" / "export" / "model.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
