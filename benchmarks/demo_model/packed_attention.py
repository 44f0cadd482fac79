"""Attention over packed batches: contexts causally, each question to its context and itself.

The two are computed apart, so that contexts need no mask, and nothing above their diagonal is
computed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, LlamaForCausalLM

from benchmarks.demo_model.packing import Batch

PACKED = "fusionrag_demo_packed"


def use_packed_attention(model: LlamaForCausalLM) -> None:
    """From now on the model reads packed batches, and nothing else."""
    AttentionInterface.register(PACKED, packed_attention)
    AttentionMaskInterface.register(PACKED, _no_mask)
    model.set_attn_implementation(PACKED)


def read(model: LlamaForCausalLM, batch: Batch) -> tuple[torch.Tensor, ...]:
    """Hidden states [B, T, width] behind the embeddings and every layer, the last one normed."""
    states: tuple[torch.Tensor, ...] = model.model(
        input_ids=batch.token_ids,
        position_ids=batch.positions,
        use_cache=False,
        output_hidden_states=True,
        question_mask=question_mask(batch),
    ).hidden_states
    return states


def question_mask(batch: Batch) -> torch.Tensor:
    """What questions may see, added to scores: [B, 1, N * Q, T]."""
    rows, width = batch.in_context.shape
    index = torch.arange(batch.token_ids.shape[1] - width)
    same = index[:, None] // batch.size == index // batch.size
    own = same & (index[:, None] >= index)
    seen = torch.cat(
        [batch.in_context[:, None].expand(-1, len(index), -1), own.expand(rows, -1, -1)], dim=-1
    )
    return torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)[:, None]


def _no_mask(*_: Any, **__: Any) -> None:
    """The mask comes with the batch."""


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    question_mask: torch.Tensor,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of rotated query, key, value [B, H, T, D]; returns [B, T, H, D].

    question_mask: [B, 1, T - C, T], added to scores; it tells C.
    """
    width = key.shape[2] - question_mask.shape[2]
    # Contiguous, or compiled code is wrong about what the kernel returns (torch 2.13).
    context_query, context_key, context_value = (
        x[:, :, :width].contiguous() for x in (query, key, value)
    )
    contexts = scaled_dot_product_attention(
        context_query, context_key, context_value, is_causal=True, scale=scaling
    )
    questions = scaled_dot_product_attention(
        query[:, :, width:].contiguous(), key, value, question_mask, scale=scaling
    )
    return torch.cat([contexts, questions], dim=2).transpose(1, 2), None
