"""How well the model answers under full attention, each question asked alone."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import torch
from transformers import LlamaForCausalLM

from fusionrag_integrations.demo.packing import IGNORED, collate, draw_sample
from fusionrag_integrations.demo.prompts import DEFAULT, PromptFormat
from fusionrag_integrations.demo.world import Style


@torch.inference_mode()
def measure(
    model: LlamaForCausalLM,
    tokenizer: Any,
    *,
    documents: int,
    worlds: int,
    fillers: tuple[int, int] = (0, 2),
    held_out_wordings: bool = False,
    form: PromptFormat = DEFAULT,
    seed: str = "evaluation",
) -> dict[str, str]:
    """Exact match by kind of question, on names that training never saw: "0.98 (120)".

    An answer is right where greedy decoding gives it token by token with the end token behind.
    """
    right: dict[str, list[bool]] = defaultdict(list)
    style = Style(held_out_names=True, held_out_wordings=held_out_wordings, fillers=fillers)
    for number in range(worlds):
        draw = random.Random(f"{seed}:{number}")
        sample = draw_sample(draw, tokenizer, documents, style, form, 60, bridges=True)
        batch = collate([sample], tokenizer.pad_token_id)
        hidden = model.model(
            input_ids=batch.token_ids, attention_mask=batch.mask, position_ids=batch.positions
        ).last_hidden_state[0]
        labels = batch.labels[0]
        at = labels != IGNORED
        correct = model.lm_head(hidden[at]).argmax(-1) == labels[at]
        owner = batch.segments[0][at]
        for index, question in enumerate(sample.questions, start=1):
            kind = question.kind + (" (new wording)" if question.new_wording else "")
            right[kind].append(bool(correct[owner == index].all()))
    return {
        kind: f"{sum(hits) / len(hits):.3f} ({len(hits)})" for kind, hits in sorted(right.items())
    }
