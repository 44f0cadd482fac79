"""Each way to answer requests: the tokens that one request alone gets, whoever else asks."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
import torch
from transformers import ContinuousBatchingManager

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.bench.throughput.batches import Batches
from fusionrag_integrations.bench.throughput.dense import dense_model, dense_systems
from fusionrag_integrations.bench.throughput.load import StoppedError, TokenTimes, closed_loop
from fusionrag_integrations.bench.throughput.systems import System, answers_of, engine_systems
from fusionrag_integrations.bench.throughput.workload import Asked, Workload
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.serving.settings import AnswerSettings
from tests.bench.throughput.conftest import TOKENS, answers_by, plan
from tests.tiny_models import build
from tests.tiny_tokenizers import byte_level_tokenizer

WAYS = ("generate", "batches", "batched decode", "continuous")


def way_of(model: CausalModel, way: str) -> System:
    (system,) = (system for system in dense_systems(model, plan()) if system.way == way)
    return system


def alone(engine: FusionEngine, requests: Sequence[Asked]) -> list[list[int]]:
    """What full attention answers to each, by the engine."""
    settings = AnswerSettings(kv="none", max_tokens=TOKENS)
    return [list(engine.answer(asked.prompt, settings).token_ids) for asked in requests]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("clients", [1, 4])
def test_full_attention_answers_the_same_in_every_way(
    towns: FusionEngine, requests: list[Asked], way: str, clients: int
) -> None:
    short = Workload(towns, plan(prompt_tokens=150)).requests(3, 2)
    mixed = [*short, *requests[:3]]  # so that batches are padded
    assert answers_by(way_of(towns.model, way), mixed, clients) == alone(towns, mixed)


def test_a_model_with_windows_is_decoded_in_batches_that_are_prefilled_together() -> None:
    windowed = CausalModel(build("mistral_window"), byte_level_tokenizer(chat=True), "windowed")
    ways = [system.way for system in dense_systems(windowed, plan())]
    assert ways == ["generate", "batches", "continuous"]


def test_full_attention_runs_on_the_models_own_weights_with_sdpa(towns: FusionEngine) -> None:
    hf = towns.model.hf
    kept = hf.config._attn_implementation
    own = dense_model(towns.model)
    assert own.config._attn_implementation == "sdpa" != kept
    assert hf.config._attn_implementation == kept
    pairs = zip(own.parameters(), hf.parameters(), strict=True)
    assert all(mine.data_ptr() == theirs.data_ptr() for mine, theirs in pairs)


@pytest.mark.parametrize("together", [True, False])
def test_requests_that_wait_share_a_batch(
    towns: FusionEngine, requests: list[Asked], together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = dense_model(towns.model)
    sizes: list[int] = []
    forward = model.forward

    def watched(input_ids: torch.Tensor, **given: object) -> object:
        if input_ids.shape[1] == 1:
            sizes.append(len(input_ids))
        return forward(input_ids=input_ids, **given)

    monkeypatch.setattr(model, "forward", watched)
    batches = Batches(model, TOKENS, at_once=4, together=together)
    answers_by(System("full_attention", "batches", None, batches.serve), requests, 6)
    assert max(sizes) > 1
    assert max(sizes) <= 4
    assert sum(sizes) == len(requests) * (TOKENS - 1)


@pytest.mark.parametrize("number", [0, 1])
def test_the_engine_answers_as_it_does_alone(
    towns: FusionEngine, requests: list[Asked], number: int
) -> None:
    system = engine_systems(towns, [0.15], TOKENS)[number]
    assert (system.name, system.ratio) == (("fusionrag", "fusionrag_serial")[number], 0.15)
    settings = AnswerSettings(ratio=0.15, max_tokens=TOKENS, break_even=False)
    expected = [list(towns.answer(asked.prompt, settings).token_ids) for asked in requests]
    assert answers_by(system, requests, 4) == expected


def test_one_at_a_time_means_so(
    towns: FusionEngine, requests: list[Asked], monkeypatch: pytest.MonkeyPatch
) -> None:
    counting, now, most = threading.Lock(), [0], [0]
    stream = FusionEngine.stream

    class Watched:
        def __init__(self, inner: object) -> None:
            self._inner = inner
            with counting:
                now[0] += 1
                most[0] = max(most[0], now[0])

        def __iter__(self) -> object:
            return iter(self._inner)  # type: ignore[call-overload]

        @property
        def answer(self) -> object:
            return self._inner.answer  # type: ignore[attr-defined]

        def close(self) -> None:
            with counting:
                now[0] -= 1

    monkeypatch.setattr(FusionEngine, "stream", lambda *given: Watched(stream(*given)))
    together, serial = engine_systems(towns, [0.0], TOKENS)
    answers_by(serial, requests, 4)
    assert most == [1]
    answers_by(together, requests, 4)
    assert most[0] > 1


def test_end_tokens_do_not_end_an_answer(towns: FusionEngine, requests: list[Asked]) -> None:
    """Whichever token comes first, as an end token it would end the answer there."""
    config = towns.model.hf.generation_config
    expected = alone(towns, requests[:1])[0]
    config.eos_token_id = expected[0]
    try:
        with answers_of(towns.model, TOKENS):
            for system in (*engine_systems(towns, [1.0], TOKENS), way_of(towns.model, "generate")):
                assert answers_by(system, requests[:1], 1) == [expected]
    finally:
        config.eos_token_id = None


@pytest.mark.parametrize("way", WAYS)
def test_a_request_that_fails_ends_neither_others_nor_the_system(
    towns: FusionEngine, requests: list[Asked], way: str
) -> None:
    broken = Asked("", (10**6,))  # no token has this id
    with way_of(towns.model, way).serve() as ask:
        outcome = closed_loop(ask, [requests[0], broken, requests[1]], TOKENS, 1)
    assert len(outcome.errors) >= 1
    if way != "continuous":  # transformers' own ends at the first error
        assert len(outcome.answered) == 2


@pytest.mark.parametrize("way", WAYS)
def test_what_is_stopped_ends(towns: FusionEngine, requests: list[Asked], way: str) -> None:
    stopping = threading.Event()
    stopping.set()
    before = threading.active_count()
    with way_of(towns.model, way).serve() as ask, pytest.raises(StoppedError):
        ask(requests[0], TokenTimes(stopping))
    assert threading.active_count() <= before


def test_continuous_batching_that_cannot_begin_fails_each_request(
    towns: FusionEngine, requests: list[Asked], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(manager: object) -> None:
        raise ValueError("no room")

    monkeypatch.setattr(ContinuousBatchingManager, "warmup", refused)
    with way_of(towns.model, "continuous").serve() as ask:
        outcome = closed_loop(ask, requests[:2], TOKENS, 2)
    reason = "FusionRAGError: transformers' continuous batching can't begin: ValueError: no room"
    assert outcome.errors == (reason, reason)
