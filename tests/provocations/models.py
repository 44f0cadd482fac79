"""Loading a model."""

from __future__ import annotations

from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoTokenizer, Gemma3TextConfig, LlamaConfig, MambaConfig, Qwen2Config

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.model.steps import EAGER_STEPS, GraphedSteps
from tests.provocations.world import Provoked, Seen, World
from tests.tiny_models import COMMON, GEMMA_ROPE, heads, rope

provoked = Provoked()


def load(world: World, config: Any = None, **given: Any) -> FusionEngine:
    """From a directory that holds a configuration alone, or the tiny model."""
    path = world.model_dir if config is None else world.config(config)
    return FusionEngine.from_pretrained(path, store=world.tmp / "store", **given)


@provoked.by(
    "... has no fast tokenizer, which finding chunks by their character offsets needs. ..."
)
def slow_tokenizer(world: World) -> None:
    slow = SimpleNamespace(is_fast=False)
    world.patch.setattr(AutoTokenizer, "from_pretrained", lambda path, **_: slow)
    load(world)


@provoked.by("... contains custom code which must be executed to correctly load the model. ...")
def custom_code(world: World) -> None:
    """Nobody is asked whether it may run."""

    def asked(question: str) -> str:
        raise NotImplementedError(question)

    world.patch.setattr("builtins.input", asked)
    load(world, {"model_type": "unheard_of", "auto_map": {"AutoConfig": "code.Config"}})


@provoked.by("There is no device ... here; choose auto or cpu.")
def no_gpu(world: World) -> None:
    world.patch.setattr(torch.cuda, "is_available", lambda: False)
    load(world, device="cuda")


@provoked.by("There is no device ... here; choose auto, cpu or ...")
def another_gpu(world: World) -> None:
    """On a machine that is told to have one GPU."""
    world.patch.setattr(torch.cuda, "is_available", lambda: True)
    world.patch.setattr(torch.cuda, "device_count", lambda: 1)
    load(world, device="cuda:7")


@provoked.by("Decode goes on without a CUDA graph, which can't be made: ...")
def no_graph(world: World) -> list[Seen]:
    """The device refuses to record one, as others than GPUs do."""
    from threading import Lock

    def refuse() -> None:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    world.patch.setattr(torch.cuda, "CUDAGraph", refuse)
    model = world.engine.model
    buffer = model.new_buffer(EAGER_STEPS + 2)
    model.forward_rows([5], range(1), buffer)
    steps = GraphedSteps(model.static_step(buffer, 1), model.device, Lock())
    for _ in range(EAGER_STEPS + 1):
        steps(5)
    return world.logged()


@provoked.by("KV beyond ..., or not a number, can't be kept as ...; make a store with ...")
def large_numbers(world: World) -> None:
    from fusionrag_integrations.model import CausalModel
    from tests.conftest import town

    hf = deepcopy(world.engine.model.hf)
    with torch.no_grad():
        hf.model.layers[0].self_attn.k_proj.weight.mul_(1e9)
    model = CausalModel(hf, world.engine.model.tokenizer, "large")
    engine = FusionEngine.open(model, world.tmp / "store", kv_format="int8")
    engine.ingest([town(0)])


provoked.each(
    {
        "... is not a model that transformers can load: ...": lambda w: (
            FusionEngine.from_pretrained(w.tmp, store=w.tmp / "store")
        ),
        "The model at ... can't be loaded: ...": lambda w: load(
            w, LlamaConfig(**COMMON, **heads(4, 2)).to_dict()
        ),
        "Models of type ... are not supported: ...": lambda w: load(w, MambaConfig().to_dict()),
        "This ... model has ... layers; only ... layers keep per-token keys that can move.": (
            lambda w: load(
                w,
                Qwen2Config(
                    **COMMON, **heads(4, 2), layer_types=["chunked_attention"] * 3
                ).to_dict(),
            )
        ),
        "This ... model attends in both directions; take one with causal attention.": (
            lambda w: load(
                w,
                Gemma3TextConfig(
                    **COMMON,
                    **heads(4, 2, head_dim=32),
                    **GEMMA_ROPE,
                    use_bidirectional_attention=True,
                ).to_dict(),
            )
        ),
        "RoPE scaling ... is not supported; supported are ...": lambda w: load(
            w, LlamaConfig(**COMMON, **heads(4, 2)).to_dict() | rope("ntk", factor=2.0)
        ),
        "Unknown dtype ...; choose auto, ...": lambda w: load(w, dtype="int3"),
        "Unknown device ...; choose auto, cpu or cuda.": lambda w: load(w, device="gpu"),
    }
)
