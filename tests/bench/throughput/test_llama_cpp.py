"""llama.cpp beside the engine: a stand-in for its bindings, and the bindings where they are."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from time import sleep
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from fusionrag_integrations.bench.throughput.llama_cpp import llama_cpp_systems
from fusionrag_integrations.bench.throughput.load import StoppedError, TokenTimes
from fusionrag_integrations.bench.throughput.systems import System
from fusionrag_integrations.bench.throughput.workload import Asked
from fusionrag_integrations.execution.executor import Executor
from fusionrag_integrations.execution.hf.model import CausalModel
from tests.bench.throughput.conftest import TOKENS, answers_by, plan
from tests.tiny_gguf import write_gguf
from tests.tiny_tokenizers import byte_level_tokenizer

REQUESTS = [
    Asked("", (*range(start, start + 30), 7, *range(number, number + 20)))
    for start, number in ((3, 40), (90, 50), (3, 60), (90, 70))
]


class Llama:
    """Says the prompt's tokens backwards, and notes what is asked of it."""

    made: list[Llama]

    def __init__(self, path: str, **settings: Any) -> None:
        self.path, self.settings = path, settings
        self.input_ids = np.zeros(settings["n_ctx"], dtype=np.intc)
        self.n_tokens = 0
        self.at_work = self.closed = False
        self.restored: list[tuple[int, ...]] = []
        self.made.append(self)

    def generate(self, tokens: Sequence[int], temp: float) -> Iterator[int]:
        assert not self.at_work
        assert temp == 0.0
        self.at_work = True
        for count in range(len(tokens)):
            known = [*tokens, *reversed(tokens[len(tokens) - count :])]
            self.input_ids[: len(known)] = known
            self.n_tokens = len(known)
            sleep(0.001)  # others may come in between
            yield tokens[-1 - count]

    def save_state(self) -> SimpleNamespace:
        self.at_work = False
        return SimpleNamespace(input_ids=self.input_ids.copy(), n_tokens=self.n_tokens)

    def load_state(self, state: SimpleNamespace) -> None:
        self.input_ids, self.n_tokens = state.input_ids.copy(), state.n_tokens
        self.restored.append(tuple(state.input_ids[: state.n_tokens].tolist()))

    def close(self) -> None:
        self.closed = True

    @staticmethod
    def longest_token_prefix(one: Sequence[int], other: Sequence[int]) -> int:
        pairs = zip(one, other, strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


class Cache(dict[tuple[int, ...], Any]):
    """A state of the longest common beginning, as `LlamaRAMCache` finds it."""

    def _best(self, key: Sequence[int]) -> tuple[int, ...] | None:
        common = {known: Llama.longest_token_prefix(known, key) for known in self}
        best = max(common, key=lambda known: common[known], default=None)
        return best if best is not None and common[best] else None

    def __contains__(self, key: object) -> bool:
        return self._best(key) is not None  # type: ignore[arg-type]

    def __getitem__(self, key: Sequence[int]) -> Any:
        best = self._best(key)
        assert best is not None
        return super().__getitem__(best)


@pytest.fixture
def bindings(monkeypatch: pytest.MonkeyPatch) -> list[Llama]:
    """The stand-in; returns what was made of it."""
    Llama.made = []
    monkeypatch.setitem(sys.modules, "llama_cpp", SimpleNamespace(Llama=Llama, LlamaRAMCache=Cache))
    return Llama.made


def written(model_dir: Path, path: Path, quantised: str = "F32") -> CausalModel:
    model = LlamaForCausalLM.from_pretrained(model_dir)
    return CausalModel.load(
        write_gguf(path, model, byte_level_tokenizer(chat=True), None, None, quantised)
    )


@pytest.fixture
def model(model_dir: Path, tmp_path: Path) -> CausalModel:
    return written(model_dir, tmp_path / "tiny.gguf")


def only(model: CausalModel) -> System:
    (system,) = llama_cpp_systems(model, plan())
    return system


def test_it_is_there_with_the_bindings_and_a_file(
    model: CausalModel, model_dir: Path, bindings: list[Llama], monkeypatch: pytest.MonkeyPatch
) -> None:
    system = only(model)
    assert (system.name, system.ratio) == ("llama_cpp", None)
    assert llama_cpp_systems(CausalModel.load(model_dir), plan()) == []
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    assert llama_cpp_systems(model, plan()) == []
    assert bindings == []  # nothing is loaded before it is asked


def test_it_says_how_weights_are_kept(
    model: CausalModel, model_dir: Path, tmp_path: Path, bindings: list[Llama]
) -> None:
    quantised = written(model_dir, tmp_path / "q8.gguf", "Q8_0")
    ways = [only(one).way for one in (model, quantised)]
    assert ways == ["F32 weights, one at a time", "Q8_0 weights, one at a time"]


def test_it_answers_one_request_at_a_time(model: CausalModel, bindings: list[Llama]) -> None:
    answers = answers_by(only(model), REQUESTS, clients=4)
    assert answers == [list(asked.token_ids[: -1 - TOKENS : -1]) for asked in REQUESTS]
    (llama,) = bindings
    assert (llama.path, llama.closed) == (model.source, True)
    threads = torch.get_num_threads()
    assert llama.settings["n_ctx"] == 400 + TOKENS
    assert llama.settings["n_threads"] == llama.settings["n_threads_batch"] == threads
    assert llama.settings["n_gpu_layers"] == 0


def test_what_prompts_begin_with_is_cached(model: CausalModel, bindings: list[Llama]) -> None:
    first, other, third, _ = REQUESTS
    answers_by(only(model), [first, other, third, third], clients=1)
    (llama,) = bindings
    # The third one begins as the first, not as the last one; again, it is the last one.
    assert llama.restored == [(*first.token_ids, *first.token_ids[:-TOKENS:-1])]


def test_what_is_stopped_ends(model: CausalModel, bindings: list[Llama]) -> None:
    class Stopping(TokenTimes):
        def __init__(self) -> None:
            self.at = []

        def check(self) -> None:
            if len(self.at) == 2:
                raise StoppedError

    times = Stopping()
    with only(model).serve() as ask, pytest.raises(StoppedError):
        ask(REQUESTS[0], times)
    assert (len(times.at), bindings[0].closed) == (2, True)


@pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python isn't installed")
def test_the_bindings_answer_as_the_model(model: CausalModel) -> None:
    """Weights in full: the same tokens as by the model's own greedy decoding."""
    executor, expected = Executor(model), []
    for asked in REQUESTS:
        logits, step = executor.prefill_dense(asked.token_ids)
        answer = [int(logits.argmax())]
        while len(answer) < TOKENS:
            answer.append(int(step(answer[-1]).argmax()))
        expected.append(answer)
    assert answers_by(only(model), [*REQUESTS, *REQUESTS], clients=2) == expected * 2
