"""How the demo's model and data are made: generator, packing, initial circuit, training."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.demo_model import train as training
from benchmarks.demo_model.packed_attention import read, use_packed_attention
from benchmarks.demo_model.packing import Packed, Piece, collate, draw_sample
from benchmarks.demo_model.prompts import DEFAULT, FORMATS, PromptFormat
from benchmarks.demo_model.supervision import LOOK_LAYERS, Trainee
from benchmarks.demo_model.train import Stage, new_model, train
from benchmarks.demo_model.train_tokenizer import build
from fusionrag_integrations.demo.names import draw_entity, is_held_out
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


def drawn(tokenizer: Any, seed: int, documents: int, form: PromptFormat | None) -> Packed:
    return draw_sample(random.Random(seed), tokenizer, documents, STYLE, form, 5, bridges=True)


@pytest.mark.parametrize("form", [*FORMATS, None], ids=lambda form: form.name if form else "cloze")
@torch.inference_mode()
def test_a_packed_question_reads_as_if_asked_alone(form: PromptFormat | None) -> None:
    tokenizer = build()
    torch.manual_seed(0)
    model = new_model(tokenizer).eval()
    # Contexts and questions of different lengths, so that there is padding of both.
    samples = [drawn(tokenizer, 3, 2, form), drawn(tokenizer, 4, 6, form)]
    alone = [
        model(input_ids=torch.tensor([s.context.token_ids + piece.token_ids])).logits[0]
        for s in samples
        for piece in s.asked
    ]
    batch = collate(samples, tokenizer.pad_token_id)
    use_packed_attention(model)
    together = model.lm_head(read(model, batch)[-1])
    width, expected = batch.in_context.shape[1], iter(alone)
    for row, sample in enumerate(samples):
        context = together[row, : len(sample.context.token_ids)]
        for number, piece in enumerate(sample.asked):
            start = width + number * batch.size
            question = together[row, start : start + len(piece.token_ids)]
            torch.testing.assert_close(
                torch.cat([context, question]), next(expected), rtol=0.0, atol=1e-4
            )
    assert next(expected, None) is None


def test_a_packed_prompt_is_what_the_template_makes() -> None:
    tokenizer = build()
    documents, questions = build_world(random.Random(4), 2, STYLE)
    packed = drawn(tokenizer, 4, 2, DEFAULT)
    asked, piece = packed.questions[0], packed.asked[0]
    paragraphs = [p for d in documents for p in d.paragraphs]
    assert asked.text in [q.text for q in questions]
    prompt = tokenizer.apply_chat_template(
        DEFAULT.messages(paragraphs, asked.text), add_generation_prompt=True, return_dict=False
    )
    answer = tokenizer(asked.answer, add_special_tokens=False).input_ids
    assert packed.context.token_ids + piece.token_ids == [*prompt, *answer]
    assert list(piece.labels.answers.values()) == [*answer, tokenizer.eos_token_id]
    assert len(packed.context.token_ids) + min(piece.labels.answers) == len(prompt) - 1


@pytest.mark.parametrize("form", [DEFAULT, None], ids=["prompt", "cloze"])
def test_labels_say_whom_a_clause_is_about(form: PromptFormat | None) -> None:
    tokenizer = build()
    documents, _ = build_world(random.Random(5), 6, STYLE)
    packed = drawn(tokenizer, 5, 6, form)
    facts = [fact for document in documents for fact in document.facts]

    def told(piece: Piece, hop: int) -> dict[str, str]:
        """Text up to each labelled token, and the name that its label stands for."""
        return {
            tokenizer.decode(piece.token_ids[: token + 1]): tokenizer.decode(list(name))
            for token, name in piece.labels.subjects[hop].items()
        }

    clauses = list(told(packed.context, 0).items())
    assert len(clauses) == 2 * len(facts)
    for fact, end, begin in zip(facts, clauses[::2], clauses[1::2], strict=True):
        assert end[0].endswith(fact.lead)
        assert f"{fact.lead} {fact.answer}".startswith(begin[0][begin[0].rindex(fact.lead) :])
        assert {end[1], begin[1]} == {fact.subject.name}
    assert {q.kind for q in packed.questions} == {"single_hop", "back_reference", "bridge"}
    for question, piece in zip(packed.questions, packed.asked, strict=True):
        for number, hop in enumerate(question.hops):
            ((text, name),) = told(piece, number).items()
            assert text.endswith(question.cloze[: hop.stop])
            assert name == hop.fact.subject.name


@pytest.mark.parametrize("form", [DEFAULT, None], ids=["prompt", "cloze"])
def test_looks_lead_to_the_answer(form: PromptFormat | None) -> None:
    tokenizer = build()
    packed = drawn(tokenizer, 5, 6, form)
    context = packed.context.token_ids
    for question, piece in zip(packed.questions, packed.asked, strict=True):
        last = min(piece.labels.answers)
        looks = {(look.step, look.token): look.at for look in piece.looks}
        for number, hop in enumerate(question.hops):
            (token,) = piece.labels.subjects[number]
            at = looks.pop((number, token))
            assert tokenizer.decode(context[:at]).endswith(hop.fact.lead)
            assert tokenizer.decode(context[at:]).startswith(f"{hop.fact.answer}.")
        assert (token == last) == (form is None)
        if token != last:
            assert looks.pop((2, last)) == token
        for (step, answered), behind in looks.items():
            assert step == 1
            assert answered > last
            assert context[behind] == piece.labels.answers[answered]


def test_looks_are_measured_on_the_attention_that_the_model_has() -> None:
    tokenizer = build()
    torch.manual_seed(0)
    model = new_model(tokenizer).eval()
    model.set_attn_implementation("eager")
    samples = [drawn(tokenizer, 3, 2, DEFAULT), drawn(tokenizer, 4, 6, DEFAULT)]
    expected: list[list[torch.Tensor]] = [[], [], []]
    for sample in samples:
        context = sample.context.token_ids
        for piece in sample.asked:
            ids = torch.tensor([context + piece.token_ids])
            with torch.inference_mode():
                attentions = model(input_ids=ids, output_attentions=True).attentions
            for look in piece.looks:
                at = look.at if look.in_context else len(context) + look.at
                attention = attentions[LOOK_LAYERS[look.step]][0, :, len(context) + look.token, at]
                expected[look.step].append(-attention.log().mean())
    use_packed_attention(model)
    losses = Trainee(model).losses(collate(samples, tokenizer.pad_token_id))
    for step in range(3):
        mean = torch.stack(expected[step]).mean()
        torch.testing.assert_close(losses[f"looks{step}"], mean, rtol=1e-4, atol=0.0)


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
    train(tmp_path / "whole", seed=0, peak=1e-3, resume=False, compiled=False)

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
        train(tmp_path / "resumed", seed=0, peak=1e-3, resume=False, compiled=False)
    monkeypatch.setattr(training, "draw_batch", draw_batch)
    train(tmp_path / "resumed", seed=0, peak=1e-3, resume=True, compiled=False)

    whole = load_file(tmp_path / "whole" / "export" / "model.safetensors")
    resumed = load_file(tmp_path / "resumed" / "export" / "model.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
