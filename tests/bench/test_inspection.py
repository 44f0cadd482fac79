"""What a strategy does to the KV of a prompt, against transformers alone, by loops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.bench.inspection import PLACES, Inspection, Truth, by_tenths
from fusionrag_integrations.prompt import question_prompt
from fusionrag_integrations.prompt.assembled import AssembledPrompt
from fusionrag_integrations.prompt.messages import Message
from fusionrag_integrations.selectors import TopScores, registry
from fusionrag_integrations.selectors.probe import Probe
from fusionrag_integrations.selectors.selection import TokenSelection
from fusionrag_integrations.serving.loading import LoadedPrompt
from fusionrag_integrations.serving.settings import AnswerSettings
from tests.conftest import all_records, town
from tests.reference import KV, Reference
from tests.selectors.made import known, prompt_with

LAYERS = 3
QUESTIONS = ("Which house stands there?", "What is told of the old bridge and the river?")


@pytest.fixture(scope="module")
def indexed(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> FusionEngine:
    path = tmp_path_factory.mktemp("inspection") / "store"
    engine = FusionEngine.from_pretrained(model_dir, store=path, chunk_tokens=48)
    engine.ingest([town(number) for number in range(3)])
    return engine


def prompt_of(engine: FusionEngine, chunks: Sequence[int], question: str) -> list[Message]:
    records = all_records(engine.store.catalog)
    return question_prompt([records[i].chunk.text for i in chunks], question)


@dataclass(frozen=True)
class Case:
    """A prompt over isolated KV, and what transformers alone says of it."""

    engine: FusionEngine
    model_dir: Path
    prompt: list[Message]

    def inspect(self, selector: str, ratio: float = 0.0, kv: str = "isolated") -> Inspection:
        settings = AnswerSettings(kv=kv, selector=selector, ratio=ratio)
        return Truth(self.engine, self.prompt, settings).inspect(settings)

    @cached_property
    def loaded(self) -> LoadedPrompt:
        return self.engine.load(self.prompt, AnswerSettings(kv="isolated"))

    @cached_property
    def ids(self) -> list[int]:
        """The prompt's tokens, by transformers' tokenizer alone."""
        tokenizer = AutoTokenizer.from_pretrained(self.model_dir)
        text = tokenizer.apply_chat_template(
            self.prompt, tokenize=False, add_generation_prompt=True
        )
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    @cached_property
    def reference(self) -> Reference:
        return Reference(AutoModelForCausalLM.from_pretrained(self.model_dir, dtype=torch.float32))

    @cached_property
    def true(self) -> KV:
        return self.reference.dense(self.ids)[1]

    @cached_property
    def stale(self) -> KV:
        """Each chunk's KV behind the ingest prefix alone, at its place in the prompt."""
        keys, values = (t.clone() for t in self.true)
        prefix = self.engine.encode("<s><|system|>\nAnswer the question from the context.<|end|>\n")
        prefix += self.engine.encode("<|user|>\nContext:\n")
        for span in self.loaded.prompt.spans:
            ids = span.record.encoded.token_ids
            begin = span.start - span.source_start
            alone = self.reference.isolated(prefix, ids, begin)
            own = slice(span.source_start, span.source_start + span.length)
            keys[:, :, span.start : span.stop] = alone[0][:, :, own]
            values[:, :, span.start : span.stop] = alone[1][:, :, own]
        return keys, values

    def deviations(self, kv: KV) -> list[list[float]]:
        """By layer, of each chunk token: squared, relative to the mean size, mean over K and V."""
        positions = self.loaded.prompt.chunk_positions
        found: list[list[float]] = []
        for layer in range(LAYERS):
            parts = []
            for mine, true in zip(kv, self.true, strict=True):
                size = mean(float(true[layer, :, p].square().sum()) for p in positions)
                parts.append(
                    [
                        float((mine[layer, :, p] - true[layer, :, p]).square().sum()) / size
                        for p in positions
                    ]
                )
            found.append([(k + v) / 2 for k, v in zip(*parts, strict=True)])
        return found

    @cached_property
    def attention(self) -> list[float]:
        """What each chunk token gets from the tokens behind the last chunk, by eager attention."""
        model = AutoModelForCausalLM.from_pretrained(self.model_dir, attn_implementation="eager")
        with torch.inference_mode():
            layers = model(torch.tensor([self.ids]), output_attentions=True).attentions
        suffix = range(self.loaded.prompt.spans[-1].stop, len(self.ids))
        return [
            mean(float(layer[0, :, row, p].mean()) for layer in layers for row in suffix)
            for p in self.loaded.prompt.chunk_positions
        ]


@pytest.fixture(scope="module")
def case(indexed: FusionEngine, model_dir: Path) -> Case:
    return Case(indexed, model_dir, prompt_of(indexed, (4, 0, 7), QUESTIONS[0]))


Scores = Sequence[float]
Known = Callable[[Scores], str]


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> Known:
    """Registers a selector of the tokens with the highest of these scores."""

    def register(scores: Scores) -> str:
        def score(prompt: AssembledPrompt, probe: Probe) -> torch.Tensor:
            return torch.tensor(scores)

        factory = {"oracle": lambda ratio, calibration: TopScores(ratio, score)}
        monkeypatch.setattr(registry, "_FACTORIES", registry._FACTORIES | factory)
        for place in ("serving.settings", "selectors.registry"):
            monkeypatch.setattr(f"fusionrag_integrations.{place}.check_selector", lambda name: None)
        return "oracle"

    return register


class TestDeviation:
    def test_the_loops_look_at_the_same_prompt(self, case: Case) -> None:
        assert list(case.loaded.prompt.token_ids) == case.ids
        assert len({span.record.chunk.id for span in case.loaded.prompt.spans}) == 3

    def test_of_isolated_kv_with_nothing_recomputed(self, case: Case) -> None:
        expected = [mean(layer) for layer in case.deviations(case.stale)]
        assert case.inspect("none").deviation == pytest.approx(expected, rel=1e-3, abs=1e-6)
        assert expected[0] < 1e-6  # layer 0 has seen no context yet
        assert min(expected[1:]) > 1e-3

    @pytest.mark.parametrize("kv", ["isolated", "fused"])
    @pytest.mark.parametrize(("selector", "ratio"), [("all", 1.0), ("random", 1.0), ("epic", 1.0)])
    def test_none_is_left_where_everything_is_recomputed(
        self, case: Case, kv: str, selector: str, ratio: float
    ) -> None:
        assert case.inspect(selector, ratio, kv).deviation == pytest.approx([0] * LAYERS, abs=1e-6)

    def test_fused_kv_deviates_otherwise(self, case: Case) -> None:
        fused, isolated = (case.inspect("none", kv=kv).deviation for kv in ("fused", "isolated"))
        assert min(fused[1:]) > 1e-4
        assert fused[1:] != pytest.approx(isolated[1:], rel=1e-3)

    def test_recomputing_what_is_furthest_off_takes_most_of_it_away(
        self, case: Case, oracle: Known
    ) -> None:
        stale = [sum(token) for token in zip(*case.deviations(case.stale), strict=True)]
        before = sum(case.inspect("none").deviation)
        best = sum(case.inspect(oracle(stale), 0.5).deviation)
        worst = sum(case.inspect(oracle([-s for s in stale]), 0.5).deviation)
        assert best < worst < before


class TestOverlap:
    @pytest.mark.parametrize("ratio", [0.05, 0.2, 0.45])
    def test_with_the_tokens_that_are_furthest_off(
        self, case: Case, oracle: Known, ratio: float
    ) -> None:
        stale = [sum(token) for token in zip(*case.deviations(case.stale), strict=True)]
        assert case.inspect(oracle(stale), ratio).overlap_deviation == 1.0
        assert case.inspect(oracle([-s for s in stale]), ratio).overlap_deviation == 0.0

    @pytest.mark.parametrize("ratio", [0.05, 0.2, 0.45])
    def test_with_the_tokens_that_the_question_looks_at(
        self, case: Case, oracle: Known, ratio: float
    ) -> None:
        assert case.inspect(oracle(case.attention), ratio).overlap_attention == 1.0
        worst = [-given for given in case.attention]
        assert case.inspect(oracle(worst), ratio).overlap_attention == 0.0

    def test_the_oracles_differ(self, case: Case, oracle: Known) -> None:
        look = case.inspect(oracle(case.attention), 0.2)
        assert look.overlap_deviation is not None
        assert look.overlap_deviation < 0.9

    def test_a_random_choice_overlaps_by_about_its_ratio(
        self, indexed: FusionEngine, model_dir: Path
    ) -> None:
        chosen = [(0, 3, 5, 8), (1, 2, 4), (6, 7, 0, 1), (8, 2, 5)]
        cases = [
            Case(indexed, model_dir, prompt_of(indexed, chunks, question))
            for chunks in chosen
            for question in QUESTIONS
        ]
        looks = [case.inspect("random", 0.3) for case in cases]
        for name in ("overlap_deviation", "overlap_attention"):
            found = [getattr(look, name) for look in looks]
            assert mean(found) == pytest.approx(0.3, abs=0.06)
            assert max(found) < 0.6

    def test_none_without_a_choice_and_all_of_everything(self, case: Case) -> None:
        nothing, everything = case.inspect("none"), case.inspect("all", 1.0)
        assert (nothing.overlap_deviation, nothing.overlap_attention) == (None, None)
        assert (everything.overlap_deviation, everything.overlap_attention) == (1.0, 1.0)


class TestPlaces:
    def test_nothing_and_everything(self, case: Case) -> None:
        assert case.inspect("none").places == (0,) * PLACES
        counts = [0] * PLACES
        for span in case.loaded.prompt.spans:
            size = len(span.record.encoded.token_ids)
            for token in range(span.source_start, span.source_start + span.length):
                (tenth,) = [i for i in range(10) if i * size <= token * 10 < (i + 1) * size]
                counts[tenth] += 1
        assert case.inspect("all", 1.0).places == tuple(counts)

    def test_the_budget_is_what_is_counted(self, case: Case) -> None:
        found = len(case.loaded.prompt.chunk_positions)
        assert sum(case.inspect("random", 0.3).places) == int(0.3 * found)

    def test_of_whole_chunks_by_hand(self) -> None:
        prompt = prompt_with([(known("a", 20), 0, 5, 20), (known("b", 3), 0, 30, 3)], 40)
        selected = TokenSelection((5, 6, 7, 14, 15, 24, 30, 31, 32))
        # a: tokens 0, 1 | 2 | 9 | 10 | 19 of 20; b: 0 | 1 | 2 of 3
        assert by_tenths(prompt, selected) == (2 + 1, 1, 0, 0 + 1, 1, 1, 0 + 1, 0, 0, 1)

    def test_a_place_is_in_the_chunk_not_in_the_run(self) -> None:
        prompt = prompt_with([(known("a", 20), 10, 5, 4), (known("a", 20), 16, 11, 4)], 20)
        assert by_tenths(prompt, TokenSelection((5, 8, 11, 14))) == (0, 0, 0, 0, 0, 1, 1, 0, 1, 1)


def test_looking_changes_nothing(case: Case) -> None:
    settings = [
        AnswerSettings(kv="isolated", selector=s, ratio=0.2) for s in ("epic", "cacheblend")
    ]
    truth = Truth(case.engine, case.prompt, settings[0])
    once = [truth.inspect(s) for s in settings]
    assert [truth.inspect(s) for s in reversed(settings)] == once[::-1]
    assert [Truth(case.engine, case.prompt, s).inspect(s) for s in settings] == once
