"""How fast this machine can be: the limit of a time to first token, from what was measured.

The parts of a prefill at their best, each measured alone in the true shapes: products with all
weight matrices over R rows; attention, as fast as dense causal attention is; moving the KV of the
chunks. A limit is what their sum would take: no probe, no masks, no Python.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch.nn.functional import linear, scaled_dot_product_attention

from fusionrag_integrations.bench.clock import times_ms
from fusionrag_integrations.execution.hf.model import CausalModel

REPEATS = 3


class Ceilings:
    """Measures what is asked, once each. Milliseconds."""

    def __init__(self, model: CausalModel, context: int, moves: bool) -> None:
        """moves: whether chunk KV comes from the host, or is attended to in place."""
        self._model = model
        self._context = context
        self._moves = moves
        self.linear = lru_cache(None)(self._linear)

    def limit(self, rows: int, attended: int, chunk_tokens: int) -> float:
        """The least time for a prefill of `rows` rows that attend to `attended` keys in all.

        All layers run over all rows, but the last: there only K and V are needed, apart from the
        last row. chunk_tokens: whose KV has to be moved.
        """
        attention = self.dense_attention * attended / _causal_pairs(self._context)
        computing = self.linear(rows) + attention
        if not (chunk_tokens and self._moves):
            return computing
        moving = self.move_kv * chunk_tokens / self._context
        # To a GPU, KV can move while layers compute; on a CPU both need its cores.
        return max(computing, moving) if self._model.device.type == "cuda" else computing + moving

    def _linear(self, rows: int) -> float:
        """Products of `rows` rows with every weight matrix of the model, once."""
        *layers, last = [_weights(layer) for layer in self._model.hf.base_model.layers]
        of_keys = last[0][: self._model.num_kv_heads * self._model.head_dim]  # any of that size
        head = self._model.hf.get_output_embeddings().weight
        inputs = {
            size: torch.randn(rows, size, dtype=head.dtype, device=head.device)
            for weights in (*layers, last)
            for size in {weight.shape[1] for weight in weights}
        }

        def once() -> None:
            for weights in layers:
                for weight in weights:
                    linear(inputs[weight.shape[1]], weight)
            for _ in ("keys", "values"):
                linear(inputs[of_keys.shape[1]], of_keys)
            for weight in last:
                linear(inputs[weight.shape[1]][-1:], weight)
            linear(inputs[head.shape[1]][-1:], head)

        return self._best(once)

    @cached_property
    def dense_attention(self) -> float:
        """Causal attention over the whole context, in all layers."""
        model = self._model
        heads = model.hf.config.num_attention_heads
        sizes: dict[str, Any] = {"dtype": model.dtype, "device": model.device}
        queries = torch.randn(1, heads, self._context, model.head_dim, **sizes)
        keys = torch.randn(1, model.num_kv_heads, self._context, model.head_dim, **sizes)
        layer = self._best(
            lambda: scaled_dot_product_attention(
                queries, keys, keys, is_causal=True, enable_gqa=True
            )
        )
        return layer * model.num_layers

    @cached_property
    def move_kv(self) -> float:
        """Copying the KV of the whole context to where it is used."""
        model = self._model
        shape = (2, model.kv_layers, model.num_kv_heads, self._context, model.head_dim)
        target = torch.zeros(shape, dtype=model.dtype, device=model.device)
        source = torch.ones_like(target)
        if model.device.type == "cuda":
            source = source.cpu().pin_memory()
        return self._best(lambda: target.copy_(source, non_blocking=True))

    def _best(self, work: Callable[[], Any]) -> float:
        return min(times_ms(work, REPEATS, self._model.device))


def _weights(layer: torch.nn.Module) -> list[torch.Tensor]:
    return [m.weight for m in layer.modules() if isinstance(m, torch.nn.Linear)]


def _causal_pairs(tokens: int) -> int:
    return tokens * (tokens + 1) // 2
