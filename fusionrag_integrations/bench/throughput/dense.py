"""Full attention, one request at a time, as transformers' `generate` gives it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from threading import Lock
from typing import Any

import torch

from fusionrag_integrations.bench.throughput.batches import Batches
from fusionrag_integrations.bench.throughput.continuous import continuous_batching
from fusionrag_integrations.bench.throughput.load import Ask, TokenTimes
from fusionrag_integrations.bench.throughput.plan import Plan
from fusionrag_integrations.bench.throughput.systems import Serve, System, config_of
from fusionrag_integrations.bench.throughput.workload import Asked
from fusionrag_integrations.execution.hf.model import CausalModel


def dense_systems(model: CausalModel, plan: Plan) -> list[System]:
    """Every way to answer by full attention, over the same weights and with SDPA attention.

    All are given token ids, so that none has to encode text.
    """
    own, tokens, at_once = dense_model(model), plan.output_tokens, plan.most_clients
    batches = Batches(own, tokens, at_once, together=True)
    ways: dict[str, Serve] = {"generate": partial(_generate, own, tokens), "batches": batches.serve}
    if len(model.global_layers) == model.num_layers:  # a window's cache can't be put together
        alone = Batches(own, tokens, at_once, together=False)
        ways["batched decode"] = alone.serve
    ways["continuous"] = partial(
        continuous_batching, dense_model(model), tokens, at_once, plan.prompt_tokens
    )
    return [System("full_attention", way, None, serve) for way, serve in ways.items()]


def dense_model(model: CausalModel) -> Any:
    """The model as transformers has it, with SDPA attention, over the same weights."""
    shared = {id(tensor): tensor for tensor in (*model.hf.parameters(), *model.hf.buffers())}
    own = deepcopy(model.hf, shared)
    own.set_attn_implementation("sdpa")
    return own


@contextmanager
def _generate(model: Any, tokens: int) -> Iterator[Ask]:
    lock = Lock()
    config = config_of(model.generation_config, tokens)

    def ask(asked: Asked, times: TokenTimes) -> Sequence[int]:
        with lock:
            times.check()
            ids = torch.tensor([asked.token_ids], device=model.device)
            output = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=config,
                streamer=_Clock(times),
            )
        return [int(token) for token in output[0, len(asked.token_ids) :]]

    yield ask


class _Clock:
    """What `generate` shows its tokens to: first the prompt's, then each one as it comes."""

    def __init__(self, times: TokenTimes) -> None:
        self._times = times
        self._prompt_seen = False

    def put(self, token_ids: torch.Tensor) -> None:
        if self._prompt_seen:
            self._times.add()
        self._prompt_seen = True

    def end(self) -> None:
        """Nothing is left to do."""
