"""Calibrating: what is measured, and which calibration is taken."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fusionrag_integrations import AnswerSettings, FusionEngine
from fusionrag_integrations.bench import calibrate
from fusionrag_integrations.bench.calibrate import EXPONENTS, Trial, _Subject, cheapest_of_the_best
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.execution.placement import place_in_buffer
from fusionrag_integrations.execution.recompute import PlacedPrompt, PrefillOutput
from fusionrag_integrations.prompt import question_prompt
from fusionrag_integrations.prompt.messages import Message
from fusionrag_integrations.selectors import make_selector, middle_layers
from fusionrag_integrations.store.calibration import Calibration
from tests.conftest import all_records, town

LAYERS = 3
ANY = Calibration(layers=(1,))


def trial(scores: tuple[float, ...], *layers: int, **signals: Any) -> Trial:
    return Trial(Calibration(layers=layers, **signals), scores)


class TestTheChoice:
    """Four questions; the error is of the difference from the best, question by question."""

    best = trial((-1.0, -2.0, -3.0, -4.0), 4, 6, whole_sentences=True)

    def chosen(self, *others: Trial) -> Trial:
        found = cheapest_of_the_best([*others, self.best])
        assert cheapest_of_the_best([self.best, *reversed(others)]) == found
        return found

    def test_the_best_alone(self) -> None:
        assert self.chosen() == self.best

    def test_a_shallower_one_within_the_error(self) -> None:
        # Behind by 0.3, -0.1, 0.3, -0.1: 0.1 in the mean, 0.231 / 2 = 0.115 of error.
        near = trial((-1.3, -1.9, -3.3, -3.9), 2)
        assert self.chosen(near) == near

    def test_not_one_beyond_it(self) -> None:
        # Behind by 0.35, -0.05, 0.35, -0.05: 0.15 in the mean, and the same error.
        assert self.chosen(trial((-1.35, -1.95, -3.35, -3.95), 2)) == self.best

    def test_a_small_but_steady_gap_tells_apart(self) -> None:
        assert self.chosen(trial((-1.01, -2.01, -3.01, -4.01), 0)) == self.best

    def test_the_error_is_paired(self) -> None:
        """Questions differ by far more than the calibrations do on any of them."""
        behind = trial((-1.4, -2.5, -3.4, -4.5), 0)
        assert self.chosen(behind) == self.best

    def test_depth_decides_not_the_number_of_layers(self) -> None:
        many, one = trial((-1.3, -1.9, -3.3, -3.9), 0, 1, 2, 3), trial((-1.0, -2.0, -3.0, -4.1), 5)
        assert self.chosen(one, many) == many

    def test_of_the_shallowest_the_best(self) -> None:
        near = trial((-1.3, -1.9, -3.3, -3.9), 2)
        nearer = trial((-1.2, -1.9, -3.2, -3.9), 1, 2, sensitivity=1.0)
        far = trial((-9.0, -9.0, -9.0, -9.0), 0)
        assert self.chosen(near, nearer, far) == nearer

    def test_an_equal_one_that_is_shallower(self) -> None:
        same = trial(self.best.scores, 1)
        assert self.chosen(same) == same


@pytest.fixture(scope="module")
def indexed(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> FusionEngine:
    path = tmp_path_factory.mktemp("calibrate") / "store"
    engine = FusionEngine.from_pretrained(model_dir, store=path, chunk_tokens=48)
    engine.ingest([town(0), town(1)])
    return engine


def prompt_of(engine: FusionEngine, *chunks: int) -> list[Message]:
    records = all_records(engine.store.catalog)
    return question_prompt([records[i].chunk.text for i in chunks], "Which house stands there?")


@pytest.fixture(scope="module")
def prompts(indexed: FusionEngine) -> list[list[Message]]:
    return [prompt_of(indexed, *chunks) for chunks in ((0, 4), (5, 2), (1, 3))]


class TestTheSearch:
    @pytest.fixture(scope="class")
    def found(
        self, indexed: FusionEngine, prompts: list[list[Message]]
    ) -> tuple[Calibration, dict[str, Any], list[tuple[int, int]]]:
        seen: list[tuple[int, int]] = []
        best, measured = calibrate.calibrate(indexed, prompts, lambda *at: seen.append(at))
        return best, measured, seen

    def test_layers_alone_then_the_best_together(self, found: Any, indexed: FusionEngine) -> None:
        trials = found[1]["trials"]
        single, together = trials[:LAYERS], trials[LAYERS:]
        assert [(t["layers"], t["whole_sentences"], t["sensitivity"]) for t in single] == [
            ((layer,), False, 0.0) for layer in range(LAYERS)
        ]
        best = [t["layers"][0] for t in sorted(single, key=lambda t: -t["log_likelihood"])]
        sets = {tuple(sorted(best[:n])) for n in (1, 2, 3)}
        sets |= {middle_layers(indexed.model), tuple(range(indexed.model.num_layers))}
        assert len(together) == len(sets) * 2 * len(EXPONENTS)
        assert {(t["layers"], t["whole_sentences"], t["sensitivity"]) for t in together} == {
            (layers, whole, exponent)
            for layers in sets
            for whole in (False, True)
            for exponent in EXPONENTS
        }

    def test_what_is_taken_is_one_of_those_together(self, found: Any) -> None:
        best, measured, _ = found
        tried = [
            {n: v for n, v in t.items() if n != "log_likelihood"}
            for t in measured["trials"][LAYERS:]
        ]
        assert asdict(best) in tried

    def test_the_scores_are_means_over_the_questions(
        self, found: Any, indexed: FusionEngine, prompts: list[list[Message]]
    ) -> None:
        for t in found[1]["trials"][:: LAYERS + 1]:
            tried = Calibration(t["layers"], t["whole_sentences"], t["sensitivity"])
            scores = [
                _Subject(indexed, prompt, kv).likelihood(tried)
                for prompt in prompts
                for kv in ("isolated", "fused")
            ]
            assert t["log_likelihood"] == pytest.approx(mean(scores), abs=1e-4)

    def test_it_says_what_was_measured(self, found: Any) -> None:
        assert (found[1]["questions"], found[1]["ratio"]) == (3, calibrate.RATIO)

    def test_progress_goes_up_to_the_end(self, found: Any) -> None:
        assert found[2] == [(done, 6) for done in range(7)]


class Transformers:
    """The model's own greedy answer and its log-likelihood, by one dense pass."""

    def __init__(self, path: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()

    @torch.inference_mode()
    def logits(self, ids: list[int]) -> torch.Tensor:
        return self.model(torch.tensor([ids])).logits[0]

    def likelihood(self, prompt: list[Message], length: int) -> float:
        text = self.tokenizer.apply_chat_template(
            prompt, tokenize=False, add_generation_prompt=True
        )
        ids = list(self.tokenizer(text, add_special_tokens=False).input_ids)
        start = len(ids)
        end = self.model.generation_config.eos_token_id
        while len(ids) < start + length and (len(ids) == start or ids[-1] != end):
            ids.append(int(self.logits(ids)[-1].argmax()))
        told = self.logits(ids)[start - 1 : -1].double().exp()
        return mean(
            math.log(float(row[token] / row.sum()))
            for row, token in zip(told, ids[start:], strict=True)
        )


class TestLikelihood:
    @pytest.fixture(scope="class")
    def reference(self, model_dir: Path) -> Transformers:
        return Transformers(model_dir)

    @pytest.mark.parametrize("max_tokens", [1, 5, 16])
    @pytest.mark.parametrize("number", [0, 1, 2])
    def test_of_everything_recomputed_is_the_dense_models(
        self,
        indexed: FusionEngine,
        prompts: list[list[Message]],
        reference: Transformers,
        monkeypatch: pytest.MonkeyPatch,
        max_tokens: int,
        number: int,
    ) -> None:
        monkeypatch.setattr(calibrate, "MAX_TOKENS", max_tokens)
        expected = reference.likelihood(prompts[number], max_tokens)
        subject = _Subject(indexed, prompts[number], "isolated")
        monkeypatch.setattr(calibrate, "RATIO", 1.0)
        assert subject.likelihood(ANY) == pytest.approx(expected, abs=1e-3)
        monkeypatch.setattr(calibrate, "RATIO", 0.0)
        assert subject.likelihood(ANY) != pytest.approx(
            expected, abs=1e-2
        )  # so it isn't for nothing

    def test_one_calibration_leaves_the_next_alone(
        self, indexed: FusionEngine, prompts: list[list[Message]]
    ) -> None:
        tried = [Calibration((0,)), Calibration((1, 2), True, 1.0), Calibration((2,), True)]
        subject = _Subject(indexed, prompts[0], "isolated")
        once = [subject.likelihood(c) for c in tried]
        assert [subject.likelihood(c) for c in reversed(tried)] == once[::-1]
        assert [_Subject(indexed, prompts[0], "isolated").likelihood(c) for c in tried] == once

    @pytest.mark.parametrize("ratio", [0.1, 0.4])
    @pytest.mark.parametrize(
        "calibration", [Calibration((0, 2)), Calibration((1,), True), Calibration((2,), True, 0.5)]
    )
    def test_what_is_recomputed_is_what_serving_would_choose(
        self,
        indexed: FusionEngine,
        prompts: list[list[Message]],
        monkeypatch: pytest.MonkeyPatch,
        calibration: Calibration,
        ratio: float,
    ) -> None:
        monkeypatch.setattr(calibrate, "RATIO", ratio)
        recomputed: list[tuple[int, ...]] = []
        recompute = PlacedPrompt.recompute

        def watched(placed: PlacedPrompt, selection: Any, answer: tuple[int, ...]) -> PrefillOutput:
            recomputed.append(selection.positions)
            return recompute(placed, selection, answer)

        subject = _Subject(indexed, prompts[1], "isolated")
        monkeypatch.setattr(PlacedPrompt, "recompute", watched)
        subject.likelihood(calibration)
        loaded = indexed.load(prompts[1], AnswerSettings(kv="isolated"))
        buffer = place_in_buffer(indexed.executor, loaded.prompt, loaded.kvs, len(loaded.prompt))
        placed = PlacedPrompt(indexed.executor, loaded.prompt, buffer)
        selection = make_selector("fusionrag", ratio, calibration).select(loaded.prompt, placed)
        assert recomputed == [selection.positions]
        assert len(selection) == int(ratio * len(loaded.prompt.chunk_positions))


class TestRefusals:
    @pytest.mark.parametrize("count", [0, 1])
    def test_too_few_prompts(
        self, indexed: FusionEngine, prompts: list[list[Message]], count: int
    ) -> None:
        with pytest.raises(InvalidInputError, match=f"2 questions at least; got {count}"):
            calibrate.calibrate(indexed, prompts[:count], lambda done, total: None)

    def test_a_prompt_without_chunks(
        self, indexed: FusionEngine, prompts: list[list[Message]]
    ) -> None:
        strange = question_prompt(["Nobody has stored this text. " * 5], "Who wrote this?")
        with pytest.raises(InvalidInputError, match="no chunk of the store") as refused:
            calibrate.calibrate(indexed, [prompts[0], strange], lambda done, total: None)
        assert "Nobody has stored" in str(refused.value)
