"""What is asked of an engine: published data sets, and the demo's two suites with fresh seeds."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest

from fusionrag_integrations import AnswerSettings, FusionEngine
from fusionrag_integrations.bench.comparison import Question
from fusionrag_integrations.bench.datasets import load_dataset
from fusionrag_integrations.bench.suites import Suite, context_question, published_suite
from fusionrag_integrations.demo import MODEL_DIR, suites
from fusionrag_integrations.demo.names import is_held_out
from fusionrag_integrations.demo.suites import demo_suite, hard_suite
from fusionrag_integrations.demo.world import QuestionKind
from fusionrag_integrations.engine import DEFAULT_CHUNK_TOKENS
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.ingest.missing_kv import MissingKV
from fusionrag_integrations.prompt import BRIEFLY, question_as_prompt
from fusionrag_integrations.store.changes import Changes

RIVER = "The Tolen is a river. " * 4 + "It passes Lonvale.\n\n" + "Boats are seen on it. " * 5
TOWN = "Lonvale is a town of bell makers. " * 3
WORKS = "The Brask Works make bells for many towns. " * 3


def passage(title: str, text: str) -> dict[str, str]:
    return {"title": title, "text": text}


ROWS = [
    {
        "id": "one",
        "question": "Which river passes the town of the Brask Works?",
        "answers": ["Tolen", "the Tolen"],
        "passages": [passage("Zed", WORKS), passage("Mid", RIVER), passage("Ant", TOWN)],
    },
    {
        "id": "two",
        "question": "What does Lonvale make?",
        "answers": ["bells"],
        "passages": [passage("Ant", TOWN), passage("Zed", WORKS)],
    },
]


def content(question: Question) -> str:
    """The user's words in the prompt."""
    assert not isinstance(question.prompt, str)
    return question.prompt[-1]["content"]


def stands_in_order(texts: Sequence[str], where: str) -> bool:
    """Whether each of the texts stands there behind the one before it."""
    at = 0
    for text in texts:
        at = where.find(text, at)
        if at < 0:
            return False
        at += len(text)
    return True


class TestPublished:
    @pytest.fixture
    def suite(self, tmp_path: Path) -> Suite:
        file = tmp_path / "questions.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        return published_suite(load_dataset("jsonl", file, None, 0))

    @pytest.fixture
    def filled(self, engine: FusionEngine, suite: Suite) -> FusionEngine:
        engine.ingest(suite.documents)
        return engine

    def tokens(self, engine: FusionEngine, texts: Sequence[str], question: str) -> int:
        """Of the prompt with these chunks, by its documented wording and the tokenizer alone."""
        context = "\n\n".join(texts)
        asked = f"Answer in as few words as possible.\nQuestion: {question}\nAnswer:"
        messages = [
            {"role": "system", "content": "Answer the question from the context."},
            {"role": "user", "content": f"Context:\n{context}\n\n{asked}"},
        ]
        text = engine.model.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        return len(engine.model.tokenizer(text, add_special_tokens=False).input_ids)

    def test_a_document_that_two_contexts_share_is_one(self, suite: Suite) -> None:
        assert sorted(d.title for d in suite.documents) == ["Ant", "Mid", "Zed"]
        assert (suite.name, suite.chunk_tokens) == ("jsonl", DEFAULT_CHUNK_TOKENS)

    def test_chunks_stand_in_the_datas_order(self, filled: FusionEngine, suite: Suite) -> None:
        first, second = suite.questions(filled)
        parts = [part.strip() for part in RIVER.split("\n\n")]
        assert len(parts) == 2  # a document of two chunks at 48 tokens
        assert first.context == (WORKS.strip(), *parts, TOWN.strip())
        assert second.context == (TOWN.strip(), WORKS.strip())
        for question, row in zip((first, second), ROWS, strict=True):
            assert question.kind == "jsonl"
            assert question.question == row["question"]
            assert question.answers == tuple(row["answers"])
            assert content(question).endswith(
                f"\n\nAnswer in as few words as possible.\nQuestion: {row['question']}\nAnswer:"
            )
            assert stands_in_order(question.context, content(question))

    def test_a_base_model_is_asked_in_one_text(
        self, suite: Suite, model_dir: Path, tmp_path: Path
    ) -> None:
        """Of the same words, and its chunks' KV is reused there."""
        base = shutil.copytree(model_dir, tmp_path / "base")
        (base / "chat_template.jinja").unlink()
        engine = FusionEngine.from_pretrained(base, store=tmp_path / "base-store", chunk_tokens=48)
        engine.ingest(suite.documents)
        for question, row in zip(suite.questions(engine), ROWS, strict=True):
            assert question.prompt == question_as_prompt(
                engine.model.tokenizer, question.context, str(row["question"]), BRIEFLY
            )
            assert isinstance(question.prompt, str)
            answer = engine.answer(question.prompt, AnswerSettings(max_tokens=2, break_even=False))
            assert answer.fused_chunks + answer.isolated_chunks == len(question.context)
            assert answer.fallbacks == ()

    @pytest.mark.parametrize("kept", [1, 2, 3, 4])
    @pytest.mark.parametrize("spare", [0, 1])
    def test_the_last_are_left_out_where_the_window_ends(
        self,
        filled: FusionEngine,
        suite: Suite,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        kept: int,
        spare: int,
    ) -> None:
        whole = suite.questions(filled)[0]
        needed = self.tokens(filled, whole.context[:kept], whole.question) + suite.max_tokens
        monkeypatch.setattr(filled.model, "context_window", needed + spare)
        found = suite.questions(filled)[0]
        assert found.context == whole.context[:kept]
        assert not [text for text in whole.context[kept:] if text in content(found)]
        assert filled.count_tokens(found.prompt) == needed - suite.max_tokens
        assert (f"{kept} of 4 chunks" in caplog.text) == (kept < 4)

    def test_one_token_fewer_is_a_chunk_fewer(
        self, filled: FusionEngine, suite: Suite, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = suite.questions(filled)[0]
        needed = self.tokens(filled, whole.context[:3], whole.question) + suite.max_tokens
        monkeypatch.setattr(filled.model, "context_window", needed - 1)
        assert suite.questions(filled)[0].context == whole.context[:2]

    def test_a_window_too_small_for_one_chunk_is_named(
        self, filled: FusionEngine, suite: Suite, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = suite.questions(filled)[0]
        needed = self.tokens(filled, whole.context[:1], whole.question) + suite.max_tokens
        monkeypatch.setattr(filled.model, "context_window", needed - 1)
        with pytest.raises(InvalidInputError) as refused:
            suite.questions(filled)
        said = str(refused.value)
        assert f"holds {needed - 1} tokens" in said
        assert whole.question in said
        assert filled.model_name in said

    def test_the_answers_room_is_kept(
        self, filled: FusionEngine, suite: Suite, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ids = filled.store.catalog.chunks.ids()
        texts = [r.chunk.text for r in filled.store.catalog.chunks.records(ids).values()]
        size = self.tokens(filled, texts, "Which?")
        monkeypatch.setattr(filled.model, "context_window", size + 20)
        asked = (filled, "kind", "Which?", ("x",), ids)
        briefly = partial(question_as_prompt, filled.model.tokenizer, instruction=BRIEFLY)
        kept = [len(context_question(*asked, room, briefly).context) for room in (1, 20, 21)]
        assert kept == [4, 4, 3]


@pytest.fixture(scope="module")
def model() -> CausalModel:
    return CausalModel.load(MODEL_DIR)


Make = Callable[..., Suite]
Ask = Callable[..., list[Question]]


@pytest.fixture(scope="module")
def ask(model: CausalModel, tmp_path_factory: pytest.TempPathFactory) -> Ask:
    """A suite's questions over its documents. KV, and vectors that no question is looked up by,
    aren't computed. Suites with equal documents share a store, but for a fresh one.
    """
    path = tmp_path_factory.mktemp("suites")
    engines: dict[Any, FusionEngine] = {}

    def ingested(suite: Suite) -> FusionEngine:
        engine = FusionEngine.open(model, path / str(len(engines)), chunk_tokens=suite.chunk_tokens)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MissingKV, "compute", lambda missing: (0, 0))
            if suite.name == "hard":
                patch.setattr(Changes, "embed", lambda changes, chunks: {})
            engine.ingest(suite.documents)
        return engine

    def questions(suite: Suite, fresh: bool = False) -> list[Question]:
        documents = (frozenset(paragraphs(suite)), len(engines) if fresh else None)
        if documents not in engines:
            engines[documents] = ingested(suite)
        engine = engines[documents]
        found = suite.questions(engine)
        room = engine.context_window - suite.max_tokens
        assert all(engine.count_tokens(question.prompt) <= room for question in found)
        return found

    return questions


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suites, "LEAST_DOCUMENTS", 16)


def paragraphs(suite: Suite) -> set[str]:
    return {
        text.strip()
        for d in suite.documents
        for text in ([p.text for p in d.passages] or d.text.split("\n\n"))
    }


def few_hard(seed: int, number: int, kinds: Sequence[str] = ("repeated", "unanswerable")) -> Suite:
    """Each kind has some hundred documents; demo/test_hard.py looks at all kinds."""
    return hard_suite(seed, number, kinds)


OWN: list[Any] = [
    pytest.param(demo_suite, get_args(QuestionKind), 2, id="demo"),
    pytest.param(few_hard, ("repeated", "unanswerable"), 1, id="hard"),
]


class TestOwn:
    @pytest.mark.parametrize(("make", "kinds", "number"), OWN)
    def test_so_many_of_each_kind_over_their_contexts(
        self, ask: Ask, make: Make, kinds: tuple[str, ...], number: int
    ) -> None:
        suite = make(5, number)
        found = ask(suite)
        assert Counter(q.kind for q in found) == dict.fromkeys(kinds, number)
        written = paragraphs(suite)
        for question in found:
            assert len(question.context) >= 12
            assert set(question.context) <= written  # a chunk is a paragraph
            assert stands_in_order(question.context, content(question))
            assert content(question).endswith(f"Question: {question.question}\nAnswer:")
            stated = any(a in text for a in question.answers for text in question.context)
            assert stated == (question.kind != "unanswerable")

    @pytest.mark.parametrize(("make", "kinds", "number"), OWN)
    def test_names_are_held_out(self, make: Make, kinds: tuple[str, ...], number: int) -> None:
        titles = [document.title for document in make(6, number).documents]
        assert len(titles) >= 16
        assert all(map(is_held_out, titles))

    @pytest.mark.parametrize(("make", "kinds", "number"), OWN)
    def test_the_same_seed_asks_the_same(
        self, ask: Ask, make: Make, kinds: tuple[str, ...], number: int
    ) -> None:
        one, same = make(5, number), make(5, number)
        assert one.documents == same.documents
        assert ask(one) == ask(same, fresh=True)

    @pytest.mark.parametrize(("make", "kinds", "number"), OWN)
    def test_another_seed_asks_otherwise(
        self, make: Make, kinds: tuple[str, ...], number: int, ask: Ask
    ) -> None:
        one, other = make(5, number), make(6, number)
        assert paragraphs(one).isdisjoint(paragraphs(other))
        questions = [{q.question for q in ask(suite)} for suite in (one, other)]
        assert questions[0].isdisjoint(questions[1])

    @pytest.mark.parametrize(("make", "kinds", "number"), OWN)
    def test_kinds_can_be_chosen(
        self, make: Make, kinds: tuple[str, ...], number: int, ask: Ask
    ) -> None:
        chosen = kinds[1:2]
        some = ask(make(5, number, chosen))
        assert Counter(q.kind for q in some) == {chosen[0]: number}
        whole = [q.question for q in ask(make(5, number)) if q.kind in chosen]
        assert [q.question for q in some] == whole
        with pytest.raises(InvalidInputError, match=f"riddle.*{kinds[-1]}"):
            make(5, number, ("riddle",))

    def test_more_questions_get_more_documents(self) -> None:
        assert len(demo_suite(0, 3).documents) == 16
        assert len(demo_suite(0, 6).documents) == 24


@pytest.mark.parametrize(
    ("seed", "questions"),
    [
        *((0, 5), (0, 20), (0, 50), (0, 100), (1_000_000, 100)),
        *((1, 20), (14, 19), (1, 25), (14, 30), (13, 50), (1_000_008, 25)),  # few bridges
    ],
)
def test_the_demos_world_holds_enough_questions(
    monkeypatch: pytest.MonkeyPatch, seed: int, questions: int
) -> None:
    monkeypatch.setattr(suites, "LEAST_DOCUMENTS", 80)
    suite = demo_suite(seed, questions)
    assert len(suite.documents) >= max(80, 4 * questions)
    assert suite.content == demo_suite(seed, questions).content
