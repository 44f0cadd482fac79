"""Train the demo model: `python -m benchmarks.demo_model.train --out DIR [--resume]`.

In stages, each building on what the one before has taught:

copy     random tokens, over and over: heads that copy form within a minute, and nothing else is
         learned without them
cloze    a few documents that say the same of different subjects, questions as bare clozes: whom
         a statement is about
crowd    more of them; questions over two documents join in
formats  whole prompts in many formats
more     more documents, with other sentences between
longer   prompts of about 1,000 tokens
long     prompts of up to 2,500 tokens

Few wordings in a world are what makes the model read the subject: where each wording occurs only
once, it learns to find facts by their wording alone, and hardly unlearns it.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from benchmarks.demo_model.evaluate import measure
from benchmarks.demo_model.induction import write_induction_circuit
from benchmarks.demo_model.packed_attention import use_packed_attention
from benchmarks.demo_model.packing import IGNORED, Batch, collate, draw_sample
from benchmarks.demo_model.prompts import DEFAULT, FORMATS
from benchmarks.demo_model.supervision import LOOK_LAYERS, Trainee
from benchmarks.demo_model.train_tokenizer import build as build_tokenizer
from fusionrag_integrations.demo.world import Style

logger = logging.getLogger(__name__)

LOG_EVERY = 25
CHECKPOINT_EVERY = 100
MEASURE_EVERY = 250


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the curriculum. documents and fillers are ranges, both ends included."""

    name: str
    steps: int
    batch: int
    documents: tuple[int, int] = (0, 0)
    fillers: tuple[int, int] = (0, 0)
    questions: int = 12
    cloze_share: float = 0.0
    bridges: bool = True
    wordings: tuple[int | None, ...] = (2, 3, 5, None)


STAGES: tuple[Stage, ...] = (
    Stage("copy", 120, 32),
    Stage("cloze", 350, 32, documents=(2, 5), cloze_share=1.0, bridges=False, wordings=(1, 2, 3)),
    Stage("crowd", 450, 18, documents=(4, 10), questions=16, cloze_share=1.0, wordings=(2, 3)),
    Stage("formats", 280, 16, documents=(2, 6), fillers=(0, 1), questions=10, cloze_share=0.1),
    Stage("more", 300, 8, documents=(4, 10), fillers=(0, 2), questions=14),
    Stage("longer", 300, 5, documents=(6, 13), fillers=(1, 4), questions=16),
    Stage("long", 420, 4, documents=(7, 14), fillers=(2, 6), questions=20),
)


def new_model(tokenizer: Any) -> LlamaForCausalLM:
    """An untrained model of the demo's shape."""
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=8,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=32,
            max_position_embeddings=4096,
            # Slow rotations: content is compared over thousands of positions in few dimensions.
            rope_parameters={"rope_type": "default", "rope_theta": 1e9},
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    write_induction_circuit(model, copying=LOOK_LAYERS)
    return model


def copy_batch(draw: random.Random, size: int, vocabulary: int, first: int) -> Batch:
    """Random sequences of random length, each three times over."""
    length = draw.randint(12, 60)
    rows = [[draw.randrange(first, vocabulary) for _ in range(length)] * 3 for _ in range(size)]
    ids = torch.tensor(rows)
    nothing = torch.full_like(ids, IGNORED)
    answers = ids.roll(-1, 1)
    answers[:, : length - 1] = IGNORED
    answers[:, -1] = IGNORED
    return Batch(
        token_ids=ids,
        positions=torch.arange(3 * length).expand(size, -1),
        answers=answers,
        hints=nothing,
        subjects=nothing[..., None].expand(2, -1, -1, 2),
        looks=(torch.empty(size, 0, 2, dtype=torch.long),) * len(LOOK_LAYERS),
        in_context=torch.ones(size, length, dtype=torch.bool),
        size=2 * length,
    )


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


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Warm-up over 100 steps, then constant, and linear to nothing over the last 500 steps."""
    return peak * min((step + 1) / 100, 1.0, (steps - step) / 500)


def train(out: Path, seed: int, peak: float, resume: bool, compiled: bool) -> None:
    """Train to the end of the curriculum, from the last checkpoint if `resume`."""
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    model = new_model(tokenizer)
    use_packed_attention(model)
    trainee = Trainee(model)
    logger.info("%.2f M parameters", sum(p.numel() for p in model.parameters()) / 1e6)
    optimizer = torch.optim.AdamW(
        trainee.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.01, fused=True
    )
    done = load_checkpoint(out, trainee, optimizer) if resume else 0
    if compiled:
        model.model.compile(dynamic=True)
    steps = sum(stage.steps for stage in STAGES)
    schedule = [stage for stage in STAGES for _ in range(stage.steps)]
    started, sums = perf_counter(), defaultdict[str, float](float)
    for step in range(done, steps):
        stage = schedule[step]
        draw = random.Random(f"{seed}:{step}")  # a step's data don't depend on where one resumed
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        losses = trainee.losses(draw_batch(draw, stage, tokenizer))
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
        optimizer.step()
        for name, loss in losses.items():
            sums[name] += float(loss.detach()) / LOG_EVERY
        if (step + 1) % LOG_EVERY == 0:
            rate = LOG_EVERY / (perf_counter() - started)
            shown = " ".join(f"{name} {loss:.3f}" for name, loss in sums.items())
            logger.info("%s step %d  %s  %.2f steps/s", stage.name, step + 1, shown, rate)
            sums.clear()
            started = perf_counter()
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == steps:
            save_checkpoint(out, trainee, optimizer, step + 1)
        if (step + 1) % MEASURE_EVERY == 0 and stage.name != "copy":
            with torch.compiler.set_stance("force_eager"):
                form = None if stage.cloze_share == 1.0 else DEFAULT
                found = measure(model, tokenizer, documents=6, worlds=12, wordings=3, form=form)
            logger.info("held-out EM %s", found)
            started = perf_counter()
    export(model, tokenizer, out / "export")


def save_checkpoint(
    out: Path, trainee: Trainee, optimizer: torch.optim.Optimizer, step: int
) -> None:
    """Write weights, optimizer state and step in one file, in the place of the old one."""
    tensors = {f"trainee.{n}": p.detach() for n, p in trainee.named_parameters()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{n}": t for n, t in state.items()}
    save_file(tensors, out / "checkpoint.tmp", {"step": json.dumps(step)})
    (out / "checkpoint.tmp").replace(out / "checkpoint.safetensors")


def load_checkpoint(out: Path, trainee: Trainee, optimizer: torch.optim.Optimizer) -> int:
    """Restore the last checkpoint; returns the steps done, 0 where there is none."""
    path = out / "checkpoint.safetensors"
    if not path.exists():
        return 0
    tensors = load_file(path)
    for name, parameter in trainee.named_parameters():
        parameter.data.copy_(tensors[f"trainee.{name}"])
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
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--compile", action="store_true", help="faster; needs a C++ compiler")
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train(options.out, options.seed, options.learning_rate, options.resume, options.compile)


if __name__ == "__main__":
    main()
