"""How well the model answers under full attention, each question asked alone.

`python -m benchmarks.demo_model.evaluate` prints the model card's table.
"""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any, get_args

import torch
from rich.console import Console
from transformers import AutoTokenizer, LlamaForCausalLM

from benchmarks.demo_model.packed_attention import read, use_packed_attention
from benchmarks.demo_model.packing import IGNORED, collate, draw_sample
from benchmarks.demo_model.prompts import DEFAULT, FORMATS, PromptFormat
from fusionrag_integrations.demo import MODEL_DIR
from fusionrag_integrations.demo.world import QuestionKind, Style

KINDS = get_args(QuestionKind)


@torch.inference_mode()
def measure(
    model: LlamaForCausalLM,
    tokenizer: Any,
    *,
    documents: int,
    worlds: int,
    fillers: tuple[int, int] = (0, 2),
    held_out_wordings: bool = False,
    wordings: int | None = None,
    form: PromptFormat | None = DEFAULT,
    seed: str = "evaluation",
) -> dict[str, tuple[float, int]]:
    """Exact match and number of questions by kind, on names that training never saw.

    wordings: how many a kind of subject has in one world; with few, more distractors say the same.
    The model must read packed batches (`use_packed_attention`).
    An answer is right where greedy decoding gives it token by token with the end token behind.
    """
    right: dict[str, list[bool]] = defaultdict(list)
    style = Style(
        held_out_names=True,
        held_out_wordings=held_out_wordings,
        fillers=fillers,
        wordings=wordings,
    )
    for number in range(worlds):
        draw = random.Random(f"{seed}:{number}")
        sample = draw_sample(draw, tokenizer, documents, style, form, 60, bridges=True)
        batch = collate([sample], tokenizer.pad_token_id)
        correct = model.lm_head(read(model, batch)[-1][0]).argmax(-1) == batch.answers[0]
        asked = batch.answers[0] != IGNORED
        starts = range(batch.in_context.shape[1], len(asked), batch.size)
        for question, start in zip(sample.questions, starts, strict=True):
            if held_out_wordings and not question.new_wording:
                continue
            own = slice(start, start + batch.size)
            right[question.kind].append(bool(correct[own][asked[own]].all()))
    return {kind: (sum(hits) / len(hits), len(hits)) for kind, hits in sorted(right.items())}


def main() -> None:
    """Print exact match by context length, wording and prompt format."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    model = LlamaForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    use_packed_attention(model)
    long = {"documents": 12, "worlds": 12, "fillers": (4, 5), "seed": "model card"}
    cases: dict[str, dict[str, Any]] = {
        "5 documents, about 500 tokens": {"documents": 5, "worlds": 30, "seed": "model card"},
        "12 documents, about 2,000 tokens": long,
        "the same, three wordings a kind of subject": long | {"wordings": 3},
        "the same as the second, wordings that training never saw": long
        | {"held_out_wordings": True},
        **{
            f"the same as the second, format {form.name!r}": long | {"form": form}
            for form in FORMATS
            if form.held_out
        },
    }
    console = Console(soft_wrap=True, highlight=False)
    console.print("| context | " + " | ".join(KINDS) + " |\n| --- |" + " --- |" * len(KINDS))
    for name, case in cases.items():
        result = measure(model, tokenizer, **case)
        cells = (f"{result[kind][0]:.3f} ({result[kind][1]})" for kind in KINDS)
        console.print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
