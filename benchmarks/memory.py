"""What a further request holds on the device, over chunks that other requests hold already."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from fusionrag_integrations.bench.machine import described, where_and_when
from fusionrag_integrations.bench.served import served_prompt
from fusionrag_integrations.execution.executor import Executor
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.execution.placement import place, place_in_buffer
from fusionrag_integrations.execution.recompute import PlacedPrompt
from fusionrag_integrations.selectors.selection import TokenSelection
from fusionrag_integrations.serving.settings import AnswerSettings

ANSWER_TOKENS = 256


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Bytes that a request holds once its prompt is computed, for as long as it answers.

    own_bytes: the KV of the tokens that it computes itself, its answer's among them. in_place: over
    chunks where they lie. placed: with a copy of them.
    """

    context: int
    own_tokens: int
    own_bytes: int
    in_place_bytes: int
    placed_bytes: int

    @property
    def beyond_own(self) -> float:
        """What it holds in place beside its own tokens, as a share of these."""
        return self.in_place_bytes / self.own_bytes - 1.0


def measure_memory(model: CausalModel, context: int, ratio: float) -> dict[str, Any]:
    """A request over as many shared chunks as make a prompt of `context` tokens.

    It recomputes a share of `ratio` of their tokens, spread evenly.
    """
    executor = Executor(model)
    with served_prompt(model, context, "device", None) as (pipeline, prompt):
        loaded = pipeline.load_prompt(prompt, AnswerSettings(kv="isolated"))
        known = loaded.prompt.chunk_positions
        wanted = int(ratio * len(known))
        selection = TokenSelection(
            tuple(known[i * len(known) // wanted] for i in range(wanted)) if wanted else ()
        )
        capacity = len(loaded.prompt) + ANSWER_TOKENS
        held = []
        for kind in (place, place_in_buffer):
            before = tensor_storages(model.device)
            kv = kind(executor, loaded.prompt, loaded.kvs, capacity)
            warm = PlacedPrompt(executor, loaded.prompt, kv).recompute(selection)
            held.append(tensor_bytes_since(before, model.device))
            del kv, warm
    own_tokens = len(loaded.prompt.fresh_positions) + wanted + ANSWER_TOKENS
    token_bytes = 2 * model.num_layers * model.num_kv_heads * model.head_dim * model.dtype.itemsize
    own_bytes = own_tokens * token_bytes
    use = MemoryUse(len(loaded.prompt), own_tokens, own_bytes, *held)
    facts = where_and_when() | described(model) | asdict(use)
    return facts | {"ratio": ratio, "beyond_own": use.beyond_own}


def tensor_storages(device: torch.device) -> dict[int, int]:
    """Bytes of what tensors that are alive on a device lie in, by address."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter) and thing.device == device:
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return storages


def tensor_bytes_since(before: Mapping[int, int], device: torch.device) -> int:
    """Bytes of the tensors that came to a device since its `tensor_storages` were `before`.

    Not a difference of sums: what others let go meanwhile would count against what came.
    """
    return sum(size for at, size in tensor_storages(device).items() if before.get(at) != size)
