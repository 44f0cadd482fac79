"""Train the demo model: `python -m fusionrag_integrations.demo.train --out DIR [--resume]`.

In stages, each building on what the one before has taught:

copy      random tokens, three times over: heads that copy form within minutes, and nothing
          else is learned without them
cloze     short contexts, questions as bare clozes
mixed     some of them as whole prompts
formats   whole prompts in many formats; questions over two documents join in
bridge    longer contexts, more questions over two documents
longer    prompts of about 1,200 tokens
long      prompts of up to 2,500 tokens
conflicts documents say the same of different subjects
subjects  the same as bare clozes, few words about each: whom a statement is about
again     whole prompts of that kind
all       prompts of up to 2,500 tokens, with and without such distractors
dense     many documents and few other sentences: the most distractors for the tokens
final     as all, while the learning rate falls
"""

from __future__ import annotations

import argparse
import json
import logging
import random
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from fusionrag_integrations.demo.evaluate import measure
from fusionrag_integrations.demo.induction import write_induction_circuit
from fusionrag_integrations.demo.packing import IGNORED, Batch, collate, draw_sample
from fusionrag_integrations.demo.prompts import DEFAULT, FORMATS
from fusionrag_integrations.demo.train_tokenizer import build as build_tokenizer
from fusionrag_integrations.demo.world import Style

logger = logging.getLogger(__name__)

CHECKPOINT_EVERY = 100


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the curriculum. documents and fillers are ranges, both ends included."""

    name: str
    steps: int
    batch: int
    documents: tuple[int, int] = (0, 0)
    fillers: tuple[int, int] = (0, 0)
    questions: int = 16
    cloze_share: float = 0.0
    bridges: bool = False
    hint_weight: float = 1.0
    wordings: tuple[int | None, ...] = (None,)


STAGES: tuple[Stage, ...] = (
    Stage("copy", 350, 24),
    Stage("cloze", 500, 24, documents=(1, 3), fillers=(0, 1), cloze_share=1.0),
    Stage("mixed", 500, 16, documents=(2, 4), fillers=(0, 1), cloze_share=0.5),
    Stage("formats", 600, 12, documents=(2, 7), fillers=(0, 2), cloze_share=0.1, bridges=True),
    Stage("bridge", 350, 8, documents=(3, 9), fillers=(0, 3), questions=8, bridges=True,
          hint_weight=0.5),
    Stage("longer", 500, 5, documents=(4, 11), fillers=(1, 4), questions=8, bridges=True,
          hint_weight=0.5),
    Stage("long", 450, 4, documents=(4, 14), fillers=(2, 6), questions=16, bridges=True,
          hint_weight=0.5),
    Stage("conflicts", 250, 10, documents=(3, 8), fillers=(0, 2), questions=10, bridges=True,
          wordings=(2, 3, 4)),
    Stage("subjects", 450, 24, documents=(4, 8), questions=12, cloze_share=1.0, wordings=(1, 2)),
    Stage("again", 300, 12, documents=(3, 8), fillers=(0, 2), questions=10, cloze_share=0.3,
          bridges=True, wordings=(1, 2, 3, 5)),
    Stage("all", 250, 4, documents=(4, 13), fillers=(2, 6), questions=12, bridges=True,
          hint_weight=0.5, wordings=(2, 3, 5, 8, None)),
    Stage("dense", 500, 8, documents=(7, 14), fillers=(0, 1), questions=12, cloze_share=0.3,
          bridges=True, hint_weight=0.5, wordings=(2, 3, 4)),
    Stage("final", 1080, 4, documents=(7, 13), fillers=(0, 6), questions=14, bridges=True,
          hint_weight=0.5, wordings=(2, 3, 4, None)),
)  # fmt: skip


def new_model(tokenizer: Any) -> LlamaForCausalLM:
    """An untrained model of the demo's shape."""
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=160,
            intermediate_size=384,
            num_hidden_layers=6,
            num_attention_heads=5,
            num_key_value_heads=5,
            head_dim=32,
            max_position_embeddings=4096,
            # Slow rotations: content is compared over thousands of positions in few dimensions.
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    write_induction_circuit(model)
    return model


def copy_batch(draw: random.Random, size: int, vocabulary: int, first: int) -> Batch:
    """Random sequences of random length, each three times over."""
    length = draw.randint(12, 60)
    rows = [[draw.randrange(first, vocabulary) for _ in range(length)] * 3 for _ in range(size)]
    ids = torch.tensor(rows)
    labels = ids.roll(-1, 1)
    labels[:, : length - 1] = IGNORED
    labels[:, -1] = IGNORED
    width = ids.shape[1]
    mask = torch.ones(width, width, dtype=torch.bool).tril().expand(size, 1, -1, -1)
    positions = torch.arange(width).expand(size, -1)
    nothing = torch.full_like(labels, IGNORED)
    return Batch(ids, positions, torch.zeros_like(ids), labels, nothing, mask)


def draw_batch(draw: random.Random, stage: Stage, tokenizer: Any) -> Batch:
    """A batch of the stage's kind."""
    if stage.name == "copy":
        return copy_batch(draw, stage.batch, len(tokenizer), first=262)
    known = [f for f in FORMATS if not f.held_out]
    samples = []
    cloze = draw.random() < stage.cloze_share
    # One size for the whole batch, so that little of it is padding.
    documents = draw.randint(*stage.documents)
    low, high = sorted(draw.choices(range(stage.fillers[0], stage.fillers[1] + 1), k=2))
    style = Style(
        held_out_names=False,
        held_out_wordings=False,
        fillers=(low, high),
        wordings=draw.choice(stage.wordings),
    )
    for _ in range(stage.batch):
        form = DEFAULT if draw.random() < 0.3 else draw.choice(known)
        samples.append(
            draw_sample(
                draw,
                tokenizer,
                documents,
                style,
                None if cloze else form,
                stage.questions,
                stage.bridges,
            )
        )
    return collate(samples, tokenizer.pad_token_id)


def loss_of(model: LlamaForCausalLM, batch: Batch, hint_weight: float) -> torch.Tensor:
    """Mean cross entropy of the answers' tokens, and of the hints, weighted."""
    with torch.autocast("cpu", torch.bfloat16):
        # Attention takes an additive mask; given another, every layer would convert it anew.
        mask = torch.zeros(batch.mask.shape, dtype=torch.bfloat16)
        mask.masked_fill_(~batch.mask, -torch.inf)
        hidden = model.model(
            input_ids=batch.token_ids, attention_mask=mask, position_ids=batch.positions
        ).last_hidden_state
        total = torch.zeros(())
        for labels, weight in ((batch.labels, 1.0), (batch.hints, hint_weight)):
            at = labels != IGNORED
            if weight and bool(at.any()):
                logits = model.lm_head(hidden[at]).float()
                total = total + weight * cross_entropy(logits, labels[at])
    return total


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Warm-up over 100 steps, then constant, and linear to nothing over the last 600 steps."""
    return peak * min((step + 1) / 100, 1.0, (steps - step) / 600)


def train(out: Path, seed: int, peak: float, resume: bool) -> None:
    """Train to the end of the curriculum, from the last checkpoint if `resume`."""
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    model = new_model(tokenizer)
    logger.info("%.2f M parameters", sum(p.numel() for p in model.parameters()) / 1e6)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.01)
    done = load_checkpoint(out, model, optimizer) if resume else 0
    steps = sum(stage.steps for stage in STAGES)
    schedule = [stage for stage in STAGES for _ in range(stage.steps)]
    started, losses = perf_counter(), []
    for step in range(done, steps):
        stage = schedule[step]
        draw = random.Random(f"{seed}:{step}")  # a step's data don't depend on where one resumed
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        loss = loss_of(model, draw_batch(draw, stage, tokenizer), stage.hint_weight)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        if (step + 1) % 25 == 0:
            mean = sum(losses[-25:]) / len(losses[-25:])
            rate = (step + 1 - done) / (perf_counter() - started)
            logger.info("%s step %d loss %.3f  %.2f steps/s", stage.name, step + 1, mean, rate)
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == steps:
            save_checkpoint(out, model, optimizer, step + 1)
        if (step + 1) % 200 == 0 and stage.name != "copy":
            logger.info("held-out EM %s", measure(model, tokenizer, documents=5, worlds=8))
    export(model, tokenizer, out / "export")


def save_checkpoint(
    out: Path, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, step: int
) -> None:
    """Write weights, optimizer state and step in one file, in the place of the old one."""
    tensors = {f"model.{n}": p.detach() for n, p in model.named_parameters()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{n}": t for n, t in state.items()}
    save_file(tensors, out / "checkpoint.tmp", {"step": json.dumps(step)})
    (out / "checkpoint.tmp").replace(out / "checkpoint.safetensors")


def load_checkpoint(out: Path, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer) -> int:
    """Restore the last checkpoint; returns the steps done, 0 where there is none."""
    path = out / "checkpoint.safetensors"
    if not path.exists():
        return 0
    tensors = load_file(path)
    for name, parameter in model.named_parameters():
        parameter.data.copy_(tensors[f"model.{name}"])
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, field = name.split(".", 2)
            state.setdefault(int(index), {})[field] = tensor
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    return int(next(iter(state.values()))["step"])


def export(model: LlamaForCausalLM, tokenizer: Any, directory: Path) -> None:
    """Write the model as it ships: bf16 weights, tokenizer, generation settings."""
    half = LlamaForCausalLM(model.config).to(torch.bfloat16)
    half.load_state_dict(model.state_dict())
    half.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=16,
    )
    half.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, default=1.2e-3)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train(options.out, options.seed, options.learning_rate, options.resume)


if __name__ == "__main__":
    main()
