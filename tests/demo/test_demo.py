"""The bundled model, corpus and questions, and the demo over them."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open

import fusionrag_integrations.demo.run as demo_run
from fusionrag_integrations.bench.comparison import Row
from fusionrag_integrations.cli import main
from fusionrag_integrations.demo import CHUNK_TOKENS, CORPUS_PATH, MODEL_DIR, QUESTIONS_PATH
from fusionrag_integrations.demo.corpus import make
from fusionrag_integrations.demo.names import is_held_out
from fusionrag_integrations.demo.run import INVENTED_STRATEGIES, DemoResult, invented_demo, run_demo
from fusionrag_integrations.documents.chunking import Chunker
from fusionrag_integrations.documents.readers import read_documents
from tests.small_demo import rows_of, write_few_documents

KINDS = ["single_hop", "back_reference", "bridge"]
A_KIND = 6
OTHERS = 24  # documents that answer none of the questions

CORPUS = {row["id"]: row for row in rows_of(CORPUS_PATH)}
QUESTIONS = rows_of(QUESTIONS_PATH)


def test_the_model_is_small() -> None:
    with safe_open(MODEL_DIR / "model.safetensors", "pt") as file:
        tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118
    assert {tensor.dtype for tensor in tensors} == {torch.bfloat16}
    assert sum(tensor.numel() for tensor in tensors) <= 4_000_000
    assert sum(file.stat().st_size for file in MODEL_DIR.iterdir()) <= 8_000_000


def test_corpus_and_questions_are_what_the_generator_makes() -> None:
    corpus, questions = make("demo corpus")
    assert corpus == list(CORPUS.values())
    assert questions == QUESTIONS


def test_every_paragraph_is_one_chunk() -> None:
    chunker = Chunker(CHUNK_TOKENS)
    for document in read_documents([CORPUS_PATH]):
        assert [c.text for c in chunker.split(document)] == document.text.split("\n\n")


def test_no_subject_was_seen_in_training() -> None:
    assert all(is_held_out(row["title"]) for row in CORPUS.values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_hundred_questions_of_each_kind(kind: str) -> None:
    asked = [q for q in QUESTIONS if q["kind"] == kind]
    assert len(asked) == len({q["question"] for q in asked}) == 100


def paragraphs_with(question: dict[str, Any]) -> list[str]:
    """Paragraphs of the question's last document that state its answer."""
    text = CORPUS[question["documents"][-1]]["text"]
    return [p for p in text.split("\n\n") if f"{question['answers'][0]}." in p]


def test_answers_stand_where_their_kind_says() -> None:
    for question in QUESTIONS:
        subject = CORPUS[question["documents"][-1]]["title"]
        named = [subject in paragraph for paragraph in paragraphs_with(question)]
        assert named
        if question["kind"] == "back_reference":
            assert not all(named)  # the paragraph says he, she or it
        else:
            assert any(named)


def test_a_bridge_does_not_name_its_second_document() -> None:
    for question in QUESTIONS:
        if question["kind"] == "bridge":
            first, second = (CORPUS[i] for i in question["documents"])
            assert first["title"] in question["question"]
            assert second["title"] not in question["question"]
            assert second["title"] in first["text"]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    """The demo over a sixth of its corpus."""
    corpus = tmp_path_factory.mktemp("demo") / "corpus.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_run, "CORPUS_PATH", write_few_documents(corpus, A_KIND, OTHERS))
        demo = invented_demo(limit=A_KIND)
    return run_demo(MODEL_DIR, demo, lambda stage, done, total: None)


def em(result: DemoResult, strategy: str, kind: str) -> float:
    (row,) = (r for r in result.rows if (r.strategy, r.kind) == (strategy, kind))
    return row.em


@pytest.mark.slow
def test_the_demo_covers_every_strategy_and_kind(result: DemoResult) -> None:
    assert [(row.strategy, row.kind) for row in result.rows] == [
        (strategy, kind) for kind in KINDS for strategy in INVENTED_STRATEGIES
    ]
    assert all(row.n == A_KIND for row in result.rows)


def test_prompts_are_about_two_thousand_tokens(result: DemoResult) -> None:
    sizes = [outcome.answer.usage.prompt_tokens for outcome in result.outcomes]
    assert min(sizes) > 1_600
    assert max(sizes) < 2_600


@pytest.mark.parametrize("kind", KINDS)
def test_full_attention_answers(result: DemoResult, kind: str) -> None:
    """All but one at most: which texts of equal score come first is up to the index."""
    assert em(result, "full_attention", kind) * A_KIND >= A_KIND - 1


@pytest.mark.parametrize("kind", KINDS)
def test_fusionrag_answers_as_well(result: DemoResult, kind: str) -> None:
    assert em(result, "fusionrag", kind) >= em(result, "full_attention", kind) - 0.05


def test_fusing_repairs_what_full_reuse_breaks(result: DemoResult) -> None:
    broken = em(result, "full_reuse", "back_reference")
    assert broken <= em(result, "full_attention", "back_reference") - 0.3
    assert broken <= em(result, "fusionrag", "back_reference") - 0.3


def test_no_strategy_recomputes_more_than_it_says(result: DemoResult) -> None:
    for row in result.rows:
        allowed = {"full_attention": 1.0, "full_reuse": 0.0}.get(row.strategy, 0.15)
        assert row.recompute_ratio <= allowed


def test_the_command_prints_json(result: DemoResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_run, "run_demo", lambda model, demo, progress: result)
    printed = CliRunner().invoke(main, ["demo", "--model", "demo", "--json"])
    assert printed.exit_code == 0, printed.output
    parsed = json.loads(printed.stdout)
    assert parsed["model"] == "fusionrag-demo-2m"
    assert [Row(**row) for row in parsed["rows"]] == list(result.rows)


def test_the_command_prints_a_table(result: DemoResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_run, "run_demo", lambda model, demo, progress: result)
    printed = CliRunner().invoke(main, ["demo", "--model", "demo"])
    assert printed.exit_code == 0, printed.output
    for word in (*INVENTED_STRATEGIES, *KINDS, "speed-up", QUESTIONS[0]["question"].split()[0]):
        assert word in printed.stdout
