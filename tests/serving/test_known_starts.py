"""Beginnings that prompts share with earlier ones: used, counted, and apart where they must be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fusionrag_integrations import Answer, AnswerSettings, Document, FusionEngine
from fusionrag_integrations.prompt.messages import Message
from fusionrag_integrations.store.kv.disk_budget import Budgets
from tests.conftest import town

pytestmark = pytest.mark.usefixtures("beginnings_are_known")

SYSTEM = "You answer in one word, and say nothing that the texts don't say. " * 2
SETTINGS = AnswerSettings(max_tokens=8, ratio=0.3)


@pytest.fixture
def engine(model_dir: Path, tmp_path: Path) -> Iterator[FusionEngine]:
    with FusionEngine.from_pretrained(
        model_dir, store=tmp_path / "store", chunk_tokens=48
    ) as engine:
        engine.ingest([town(0), town(1)])
        yield engine


@pytest.fixture
def plain(model_dir: Path, tmp_path: Path) -> Iterator[FusionEngine]:
    """One that keeps no beginnings."""
    with FusionEngine.from_pretrained(
        model_dir, store=tmp_path / "plain", chunk_tokens=48, budgets=Budgets(starts=0)
    ) as engine:
        engine.ingest([town(0), town(1)])
        yield engine


def said(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def asked(question: str, context: str = "") -> list[Message]:
    return [said("system", SYSTEM), said("user", f"{context}\n\n{question}")]


def system_tokens(engine: FusionEngine) -> int:
    """Tokens that all of these prompts begin with."""
    ids = [engine.pipeline.encode(asked(q), SETTINGS).token_ids for q in ("Ahead?", "Zero?")]
    return next(i for i, (a, b) in enumerate(zip(*ids, strict=False)) if a != b)


def test_a_system_prompt_is_computed_once(engine: FusionEngine, plain: FusionEngine) -> None:
    first = engine.answer(asked("Where is the fox?", town(0).text), SETTINGS)
    again = engine.answer(asked("Where is the river?", town(1).text), SETTINGS)
    expected = plain.answer(asked("Where is the river?", town(1).text), SETTINGS)
    assert first.usage.prefix_tokens == expected.usage.prefix_tokens == 0
    assert again.usage.prefix_tokens == system_tokens(engine)
    assert again.token_ids == expected.token_ids
    assert again.usage.fresh_tokens == expected.usage.fresh_tokens - again.usage.prefix_tokens
    assert again.usage.recompute_ratio == expected.usage.recompute_ratio
    assert again.usage.token_layers < expected.usage.token_layers


def test_no_answer_depends_on_what_was_asked_before(
    engine: FusionEngine, plain: FusionEngine
) -> None:
    """Exact KV of a chunk's text isn't used for a chunk: it would change the answer."""
    context = town(0).text
    engine.answer(asked("Where is the fox?", context), SETTINGS.changed({"scopes": ()}))
    for scopes in (None, ()):
        for kv in ("fused", "isolated", "none"):
            settings = SETTINGS.changed({"scopes": scopes, "kv": kv})
            prompt = asked("Where is the fox?", context)
            assert (
                engine.answer(prompt, settings).token_ids
                == plain.answer(prompt, settings).token_ids
            )


def test_full_attention_computes_all(engine: FusionEngine) -> None:
    full = SETTINGS.changed({"kv": "none"})
    for _ in range(2):
        usage = engine.answer(asked("Where is the fox?"), full).usage
        assert usage.fresh_tokens == usage.prompt_tokens
    assert engine.pipeline.starts.nbytes == 0


def test_scopes_are_apart(engine: FusionEngine) -> None:
    board = SETTINGS.changed({"scopes": ("board",)})
    engine.answer(asked("Where is the fox?"), SETTINGS)
    assert engine.answer(asked("Where is the fox?"), board).usage.prefix_tokens == 0
    assert engine.answer(asked("Where is it?"), board).usage.prefix_tokens >= system_tokens(engine)


def turns(engine: FusionEngine, context: str, settings: AnswerSettings = SETTINGS) -> list[Answer]:
    """A conversation over chunks: two turns."""
    first = engine.answer(asked("Where is the fox?", context), settings)
    more = [said("assistant", first.text), said("user", "And where is the river?")]
    return [first, engine.answer([*asked("Where is the fox?", context), *more], settings)]


def test_a_second_turn_pays_for_its_new_tokens(engine: FusionEngine) -> None:
    first, second = turns(engine, town(0).text)
    usage = second.usage
    assert usage.history_tokens >= first.usage.prompt_tokens
    assert usage.prefix_tokens == usage.recomputed_tokens == 0
    assert usage.fresh_tokens == usage.prompt_tokens - usage.history_tokens
    assert usage.token_layers == usage.fresh_tokens * engine.model.num_layers
    assert second.full_reason == ""


def test_new_chunks_in_a_second_turn_are_reused_behind_it(engine: FusionEngine) -> None:
    first = engine.answer(asked("Where is the fox?", town(0).text), SETTINGS)
    more = [said("assistant", first.text), said("user", f"{town(1).text}\n\nAnd the river?")]
    second = engine.answer([*asked("Where is the fox?", town(0).text), *more], SETTINGS)
    assert second.usage.history_tokens >= first.usage.prompt_tokens
    assert second.usage.recomputed_tokens > 0
    assert second.fused_chunks + second.isolated_chunks == 3


def test_another_question_over_the_same_chunks_is_no_continuation(engine: FusionEngine) -> None:
    engine.answer(asked("Where is the fox?", town(0).text), SETTINGS)
    other = engine.answer(asked("Where is the fox? Say it twice.", town(0).text), SETTINGS)
    again = engine.answer(asked("Where is the fox?", town(0).text), SETTINGS)
    assert other.usage.history_tokens == again.usage.history_tokens == 0


@pytest.mark.parametrize(
    "change", [{"ratio": 0.5}, {"selector": "epic"}, {"corrected": False}, {"scopes": ("",)}]
)
def test_nor_is_one_by_other_settings(engine: FusionEngine, change: dict[str, object]) -> None:
    first, second = turns(engine, town(0).text)
    more = [said("assistant", first.text), said("user", "And where is the river?")]
    prompt = [*asked("Where is the fox?", town(0).text), *more]
    other = engine.answer(prompt, SETTINGS.changed(change))
    assert (second.usage.history_tokens > 0, other.usage.history_tokens) == (True, 0)


def test_nor_is_one_after_the_store_has_changed(engine: FusionEngine) -> None:
    """What was deleted may be in its KV."""
    first = engine.answer(asked("Where is the fox?", town(0).text), SETTINGS)
    engine.delete(["town-1"])
    more = [said("assistant", first.text), said("user", "And where is the river?")]
    second = engine.answer([*asked("Where is the fox?", town(0).text), *more], SETTINGS)
    assert second.usage.history_tokens == 0


def test_a_conversation_without_chunks_is_exact(engine: FusionEngine, plain: FusionEngine) -> None:
    first, second = turns(engine, "")
    expected = turns(plain, "")[1]
    assert second.token_ids == expected.token_ids
    assert second.usage.prefix_tokens >= first.usage.prompt_tokens
    assert second.usage.history_tokens == 0


def test_memory_stays_within_its_budget(model_dir: Path, tmp_path: Path) -> None:
    budgets = Budgets(starts=400 * 3 * 2 * 2 * 16 * 4)
    with FusionEngine.from_pretrained(
        model_dir, store=tmp_path / "store", chunk_tokens=48, budgets=budgets
    ) as engine:
        engine.ingest([town(0), Document(id="other", text="Another text, about the sea. " * 9)])
        for number in range(6):
            engine.answer(asked(f"{number}? {'Why? ' * number * 9}"), SETTINGS)
            turns(engine, town(0).text, SETTINGS.changed({"seed": number}))
            assert engine.pipeline.starts.nbytes <= budgets.starts
        assert engine.pipeline.starts.nbytes > 0
