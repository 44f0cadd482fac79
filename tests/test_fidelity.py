"""Following full attention's answer: against steps, transformers alone, and engine answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from fusionrag_integrations import AnswerSettings, FusionEngine
from fusionrag_integrations.execution.buffer import KVBuffer
from fusionrag_integrations.execution.executor import Executor
from fusionrag_integrations.execution.fidelity import (
    Followed,
    FullAnswer,
    ReusedPrompt,
    answer_fully,
)
from fusionrag_integrations.execution.placement import place_in_buffer
from fusionrag_integrations.execution.recompute import PlacedPrompt, PrefillOutput
from fusionrag_integrations.prompt import question_prompt
from fusionrag_integrations.prompt.assembled import AssembledPrompt
from fusionrag_integrations.prompt.messages import Message
from fusionrag_integrations.selectors import make_selector, selector_names
from fusionrag_integrations.selectors.probe import Probe
from fusionrag_integrations.selectors.selection import TokenSelection
from tests.conftest import all_records, town
from tests.reference import Reference
from tests.test_gates import (
    CHUNKS,
    PREFIX,
    TOLERANCE,
    isolated,
    model_of,
    prompt_of_chunks,
    reference_of,
    tokens,
    varied_families,
)

ANSWER = tokens(9, 6)
STOP = 2  # the tiny models' end of sequence


@dataclass(frozen=True)
class Every:
    """Selects each chunk token of a slice, and looks at nothing."""

    which: slice

    def select(self, prompt: AssembledPrompt, probe: Probe) -> TokenSelection:
        return TokenSelection(prompt.chunk_positions[self.which])


NOTHING, SOME = Every(slice(0)), Every(slice(3, None, 7))


def placed(family: str, answer: int = len(ANSWER)) -> tuple[PlacedPrompt, KVBuffer]:
    model, prompt = model_of(family), prompt_of_chunks()
    executor = Executor(model)
    kvs = [isolated(model, ids) for ids in CHUNKS]
    buffer = place_in_buffer(executor, prompt, kvs, len(prompt) + answer)
    return PlacedPrompt(executor, prompt, buffer), buffer


def stepped(family: str, kv: KVBuffer, first: torch.Tensor, answer: Sequence[int]) -> torch.Tensor:
    """Logits behind the prompt and behind each token, [1 + A, V], a token at a time."""
    step = Executor(model_of(family)).appender(kv, len(prompt_of_chunks()))
    return torch.stack([first, *map(step, answer)])


class TestAnAnswerBehindThePrompt:
    """What is read in the pass that recomputes is as if it had come step by step."""

    def compare(
        self, family: str, own: PrefillOutput, buffer: KVBuffer, other: PrefillOutput, by_steps: Any
    ) -> None:
        expected = stepped(family, by_steps, other.logits[0], ANSWER)
        assert own.logits.shape == expected.shape
        torch.testing.assert_close(own.logits, expected, **TOLERANCE)
        torch.testing.assert_close(buffer.keys, by_steps.keys, **TOLERANCE)
        torch.testing.assert_close(buffer.values, by_steps.values, **TOLERANCE)

    @varied_families
    @pytest.mark.parametrize("selector", [NOTHING, SOME], ids=["nothing", "some"])
    def test_behind_what_is_recomputed(self, family: str, selector: Every) -> None:
        (prompt, buffer), (other, by_steps) = placed(family), placed(family)
        selection = selector.select(prompt_of_chunks(), other)
        self.compare(
            family,
            prompt.recompute(selection, ANSWER),
            buffer,
            other.recompute(selection),
            by_steps,
        )
        assert prompt.token_layers == other.token_layers > 0

    @varied_families
    def test_behind_the_early_layers(self, family: str) -> None:
        """CacheBlend's: layers 0 and 1 have run over the whole prompt, but not over the answer."""
        (prompt, buffer), (other, by_steps) = placed(family), placed(family)
        selection = SOME.select(prompt_of_chunks(), other)
        prompt.early_deviation()
        other.early_deviation()
        self.compare(
            family,
            prompt.recompute(selection, ANSWER),
            buffer,
            other.recompute(selection),
            by_steps,
        )
        assert prompt.token_layers == other.token_layers

    def test_one_token_alone(self) -> None:
        prompt, _ = placed("llama_gqa2")
        assert prompt.recompute(TokenSelection(())).logits.shape[0] == 1


def hugging_face(family: str, answer: Sequence[int]) -> torch.Tensor:
    """Logits behind the prompt and each token but the last, over chunks that transformers has
    prefilled by itself, one by one, and put together.
    """
    reference, prompt = reference_of(family), prompt_of_chunks()
    cache, at = reference.new_cache(), 0
    for span in prompt.spans:
        reference.feed(cache, prompt.token_ids[at : span.start], at)
        whole = span.record.encoded.token_ids
        made = reference.isolated(PREFIX, whole, span.start - span.source_start)
        cut = slice(span.source_start, span.source_start + span.length)
        reference.append(cache, (made[0][:, :, cut], made[1][:, :, cut]))
        at = span.stop
    logits = reference.feed(cache, prompt.token_ids[at:], at)[-1:]
    behind = [
        reference.feed(cache, [token], len(prompt) + number)
        for number, token in enumerate(answer[:-1])
    ]
    return torch.cat([logits, *behind])


def by_hand(own: torch.Tensor, true: torch.Tensor) -> list[float]:
    """KL(true || own) at each place, from logits, in double precision."""
    divergences = []
    for theirs, ours in zip(true.double().tolist(), own.double().tolist(), strict=True):
        all_theirs, all_ours = (math.fsum(map(math.exp, row)) for row in (theirs, ours))
        p = [math.exp(x) / all_theirs for x in theirs]
        q = [math.exp(x) / all_ours for x in ours]
        divergences.append(math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    return divergences


class TestFullAnswer:
    @varied_families
    def test_is_the_dense_models_own(self, family: str) -> None:
        model, prompt = model_of(family), prompt_of_chunks()
        full = answer_fully(Executor(model), prompt.token_ids, 5)
        ids = full.token_ids
        logits, _ = reference_of(family).dense([*prompt.token_ids, *ids[:-1]])
        behind = logits[-len(ids) :]
        assert ids == tuple(behind.argmax(-1).tolist())
        torch.testing.assert_close(full.log_probs, behind.log_softmax(-1), **TOLERANCE)
        assert len(ids) == 5 or ids[-1] == STOP

    def test_the_end_is_part_of_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model, prompt = model_of("llama_gqa2"), prompt_of_chunks()
        executor = Executor(model)
        first, second, *_ = answer_fully(executor, prompt.token_ids, 8).token_ids
        monkeypatch.setattr(model.hf.generation_config, "eos_token_id", second)
        full = answer_fully(executor, prompt.token_ids, 8)
        assert full.token_ids == (first, second)
        assert full.log_probs.shape[0] == 2

    def test_repetition_isnt_penalised(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model, prompt = model_of("llama_gqa2"), prompt_of_chunks()
        executor = Executor(model)
        plain = answer_fully(executor, prompt.token_ids, 8)
        monkeypatch.setattr(model.hf.generation_config, "repetition_penalty", 50.0)
        assert answer_fully(executor, prompt.token_ids, 8).token_ids == plain.token_ids


@varied_families
def test_the_divergence_is_that_of_transformers_over_chunks_put_together(family: str) -> None:
    model, prompt = model_of(family), prompt_of_chunks()
    executor = Executor(model)
    full = answer_fully(executor, prompt.token_ids, 5)
    reused = ReusedPrompt(executor, prompt, [isolated(model, ids) for ids in CHUNKS], full, 5)
    followed = reused.follow(NOTHING)
    ids = full.token_ids
    own = hugging_face(family, ids)
    true = reference_of(family).dense([*prompt.token_ids, *ids[:-1]])[0][-len(ids) :]
    expected = by_hand(own, true)
    assert max(expected) > 1e-3  # there is something to measure
    assert followed.divergence.tolist() == pytest.approx(expected, abs=1e-4, rel=1e-3)
    assert followed.greedy == tuple(own.argmax(-1).tolist())
    likely = own.log_softmax(-1)[range(len(ids)), list(ids)].tolist()
    assert followed.log_likelihood.tolist() == pytest.approx(likely, abs=1e-4)


@varied_families
def test_recomputing_all_leaves_nothing_between_them(family: str) -> None:
    model, prompt = model_of(family), prompt_of_chunks()
    executor = Executor(model)
    full = answer_fully(executor, prompt.token_ids, 5)
    reused = ReusedPrompt(executor, prompt, [isolated(model, ids) for ids in CHUNKS], full, 5)
    followed = reused.follow(Every(slice(None)))
    assert followed.greedy == full.token_ids == reused.own_answer(followed)
    assert 0.0 <= float(followed.divergence.min()) <= float(followed.divergence.max()) < 1e-5


@pytest.fixture(scope="module")
def indexed(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> FusionEngine:
    path = tmp_path_factory.mktemp("fidelity") / "store"
    engine = FusionEngine.from_pretrained(model_dir, store=path, chunk_tokens=48)
    engine.ingest([town(number) for number in range(3)])
    return engine


def asked(engine: FusionEngine, question: str) -> list[Message]:
    records = all_records(engine.store.catalog)
    return question_prompt([records[i].chunk.text for i in (1, 5, 6, 0)], question)


@dataclass(frozen=True)
class Case:
    """A question over stored KV of one kind; the model is random, so that answers differ a lot."""

    engine: FusionEngine
    prompt: list[Message]
    kv: Any
    max_tokens: int = 7

    def settings(self, selector: str, ratio: float) -> AnswerSettings:
        return AnswerSettings(
            kv=self.kv,
            selector=selector,
            ratio=ratio,
            break_even=False,
            max_tokens=self.max_tokens,
            repetition_penalty=1.0,
        )

    def full(self) -> FullAnswer:
        loaded = self.engine.load(self.prompt, self.settings("none", 0.0))
        return answer_fully(Executor(self.engine.model), loaded.prompt.token_ids, self.max_tokens)

    def reused(self) -> ReusedPrompt:
        loaded = self.engine.load(self.prompt, self.settings("none", 0.0))
        model = self.engine.model
        return ReusedPrompt(
            Executor(model), loaded.prompt, loaded.kvs, self.full(), self.max_tokens, corrected=True
        )

    def follow(self, reused: ReusedPrompt, selector: str, ratio: float) -> Followed:
        return reused.follow(make_selector(selector, ratio, self.engine.calibration))


@pytest.fixture(params=["isolated", "fused"])
def case(request: pytest.FixtureRequest, indexed: FusionEngine) -> Case:
    return Case(indexed, asked(indexed, "Which house stands there?"), request.param)


RATIOS = (0.05, 0.3)


class TestAsTheEngineAnswers:
    @pytest.mark.parametrize("max_tokens", [1, 7, 20])
    def test_full_attention(self, indexed: FusionEngine, max_tokens: int) -> None:
        case = Case(indexed, asked(indexed, "And of the bridge?"), "none", max_tokens)
        answer = indexed.answer(case.prompt, case.settings("none", 0.0))
        assert answer.token_ids == Case(indexed, case.prompt, "fused", max_tokens).full().token_ids

    @pytest.mark.parametrize("ratio", RATIOS)
    @pytest.mark.parametrize("selector", selector_names())
    def test_each_selector(self, case: Case, selector: str, ratio: float) -> None:
        reused = case.reused()
        followed = case.follow(reused, selector, ratio)
        answer = case.engine.answer(case.prompt, case.settings(selector, ratio))
        assert reused.own_answer(followed) == answer.token_ids
        assert followed.token_layers == answer.usage.token_layers
        assert len(followed.selection) == answer.usage.recomputed_tokens

    def test_one_placed_prompt_serves_all_in_any_order(self, case: Case) -> None:
        ways = [(name, 0.3) for name in selector_names()]
        alone = {way: case.follow(case.reused(), *way) for way in ways}
        together = case.reused()
        answers = set()
        for way in reversed(ways):
            followed = case.follow(together, *way)
            assert torch.equal(followed.divergence, alone[way].divergence)
            assert followed.selection == alone[way].selection
            assert followed.token_layers == alone[way].token_layers
            own = together.own_answer(followed)
            assert together.own_answer(followed) == own  # asked again
            answers.add(own)
        assert len(answers) > 3  # so it isn't for nothing

    def test_answers_of_another_length(self, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
        """One ends where full attention's goes on; another goes on where that ends."""
        own = case.reused().own_answer(case.follow(case.reused(), "none", 0.0))
        full = case.full().token_ids
        same = next(i for i, (a, b) in enumerate(zip(own, full, strict=True)) if a != b)
        generation = case.engine.model.hf.generation_config
        for end in (own[same], full[same]):
            monkeypatch.setattr(generation, "eos_token_id", end)
            reused = case.reused()
            found = reused.own_answer(case.follow(reused, "none", 0.0))
            answer = case.engine.answer(case.prompt, case.settings("none", 0.0))
            assert found == answer.token_ids
            assert len(found) != len(case.full().token_ids)


def test_a_prompt_without_chunks(indexed: FusionEngine) -> None:
    case = Case(indexed, question_prompt(["Nobody has stored this."], "Who wrote it?"), "fused")
    reused = case.reused()
    followed = case.follow(reused, "fusionrag", 0.15)
    assert reused.own_answer(followed) == case.full().token_ids
    assert float(followed.divergence.max()) < 1e-5


def test_the_reference_is_another_model_object() -> None:
    """Else the comparisons above would be with the package itself."""
    assert isinstance(reference_of("qwen2"), Reference)
    assert reference_of("qwen2").model is not model_of("qwen2").hf
