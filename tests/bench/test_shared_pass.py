"""All settings on one question, against the engine asked under each by itself."""

from __future__ import annotations

from typing import get_args

import pytest

from fusionrag_integrations import AnswerSettings, Document, FusionEngine
from fusionrag_integrations.bench.comparison import Question
from fusionrag_integrations.bench.shared_pass import answer_all
from fusionrag_integrations.bench.strategies import (
    REUSE,
    STRATEGY_NAMES,
    PlacedKV,
    Strategy,
    make_strategies,
)
from fusionrag_integrations.demo import CHUNK_TOKENS, MODEL_DIR, tasks
from fusionrag_integrations.errors import PromptTooLongError
from fusionrag_integrations.execution.executor import Executor
from fusionrag_integrations.execution.fidelity import answer_fully
from fusionrag_integrations.prompt import encode
from tests.small_demo import few_documents, few_questions

NAMES = [name for name in STRATEGY_NAMES if name != "prefix_cache"]
STRATEGIES = make_strategies(NAMES, (0.0, 0.15, 1.0), get_args(PlacedKV))
RUNS = list(dict.fromkeys(s.settings(tasks.MAX_TOKENS) for s in STRATEGIES))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> FusionEngine:
    """The bundled model over a few of its documents."""
    path = tmp_path_factory.mktemp("shared-pass")
    engine = FusionEngine.from_pretrained(
        MODEL_DIR, store=path / "store", chunk_tokens=CHUNK_TOKENS
    )
    rows = few_documents(few_questions(1), others=4)
    engine.ingest([Document(row["id"], row["text"], row["title"]) for row in rows])
    return engine


@pytest.fixture(scope="module")
def questions(demo: FusionEngine) -> list[Question]:
    """One of each kind, over a few chunks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "CHUNKS", 10)
        return tasks.load_questions(demo.store, limit=1)


@pytest.mark.parametrize("number", range(3))
def test_each_is_answered_as_by_the_engine(
    demo: FusionEngine, questions: list[Question], number: int
) -> None:
    prompt = questions[number].prompt
    outcomes = answer_all(demo, prompt, RUNS, tasks.MAX_TOKENS)
    assert list(outcomes.keys() ^ set(RUNS)) == []
    for run in RUNS:
        answer, outcome = demo.answer(prompt, run), outcomes[run]
        usage = answer.usage
        assert (outcome.text, outcome.token_ids) == (answer.text, answer.token_ids), run
        assert outcome.recomputed == usage.recomputed_tokens
        layers = usage.prompt_tokens * demo.model.num_layers
        assert outcome.work == pytest.approx(usage.token_layers / layers)


def test_what_differs_between_them(demo: FusionEngine, questions: list[Question]) -> None:
    """Nothing under full attention, much under full reuse, and hardly anything where all is new."""
    (question,) = (q for q in questions if q.kind == "back_reference")
    outcomes = answer_all(demo, question.prompt, RUNS, tasks.MAX_TOKENS)
    full, reuse, new = (
        outcomes[s.settings(tasks.MAX_TOKENS)]
        for s in (STRATEGIES[0], REUSE, Strategy("epic", "isolated", 1.0))
    )
    ids = full.token_ids
    assert set(full.divergence) == {0.0}
    assert (full.greedy, full.work, full.recomputed) == (ids, 1.0, 0)
    assert max(reuse.divergence) > 0.1
    assert max(new.divergence) < 1e-4
    assert new.greedy == ids
    lengths = {len(o.divergence) for o in outcomes.values()}
    assert lengths == {len(o.greedy) for o in outcomes.values()} == {len(ids)}


def test_full_attention_answers_once(
    demo: FusionEngine, questions: list[Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fusionrag_integrations.bench import shared_pass

    asked: list[int] = []

    def watched(executor: Executor, ids: tuple[int, ...], max_tokens: int) -> object:
        asked.append(max_tokens)
        return answer_fully(executor, ids, max_tokens)

    monkeypatch.setattr(shared_pass, "answer_fully", watched)
    answer_all(demo, questions[0].prompt, RUNS[:4], 3)
    assert asked == [3]


def test_only_what_is_asked_for(demo: FusionEngine, questions: list[Question]) -> None:
    run = AnswerSettings(kv="fused", selector="epic", ratio=0.2, max_tokens=2)
    assert list(answer_all(demo, questions[0].prompt, [run], 2)) == [run]


@pytest.mark.parametrize("room", [0, 1])
def test_an_answer_without_room(
    demo: FusionEngine, questions: list[Question], monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    prompt = questions[0].prompt
    size = len(encode(demo.model.tokenizer, prompt).token_ids)
    monkeypatch.setattr(demo.model, "context_window", size + 2 + room)
    run = AnswerSettings(kv="none", max_tokens=3)
    if room:
        assert answer_all(demo, prompt, [run], 3)
        return
    with pytest.raises(PromptTooLongError, match=f"{size} tokens and its answer up to 3"):
        answer_all(demo, prompt, [run], 3)
