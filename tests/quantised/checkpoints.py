"""Checkpoints with quantised weights, as they are published: half precision beside packed tensors.

Those of the bundled model are written here by the formats' own definitions or packages.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    TorchAoConfig,
)

from fusionrag_integrations.demo import MODEL_DIR
from tests.tiny_models import build
from tests.tiny_tokenizers import byte_level_tokenizer

# A projection's weight, as parts that a checkpoint keeps, and what they stand for.
Packed = tuple[Mapping[str, torch.Tensor], torch.Tensor]
FP8_MAX = 448.0
MXFP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def bundled(dtype: torch.dtype, **how: Any) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=dtype, **how)
    return model


def own(directory: Path) -> PreTrainedModel:
    """The model as transformers alone loads and runs it."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return model


def by_transformers(directory: Path, how: Any) -> PreTrainedModel:
    """As transformers quantises a model at load and saves it."""
    bundled(torch.bfloat16, quantization_config=how).save_pretrained(directory)
    AutoTokenizer.from_pretrained(MODEL_DIR).save_pretrained(directory)
    return own(directory)


def fp8(directory: Path) -> PreTrainedModel:
    """As DeepSeek and Qwen publish it: blocks of 128 by 128 weights, each with a scale.

    Returned is what they stand for: without a GPU, transformers' own has two dtypes, and fails.
    """

    def packed(weight: torch.Tensor) -> Packed:
        rows, columns = weight.shape
        blocks = weight.reshape(rows // 128, 128, columns // 128, 128)
        scales = blocks.abs().amax((1, 3)) / FP8_MAX
        numbers = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn)
        meant = numbers.float() * scales[:, None, :, None]
        parts = {"weight": numbers.reshape(rows, columns), "weight_scale_inv": scales}
        return parts, meant.reshape(rows, columns)

    how = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    return _write(directory, how, packed)


def compressed(directory: Path, scheme_name: str, form: str, largest: float) -> PreTrainedModel:
    """As llm-compressor writes it."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import (
        QuantizationConfig,
        QuantizationStatus,
        preset_name_to_scheme,
    )

    scheme = preset_name_to_scheme(scheme_name, ["Linear"])
    group = scheme.weights.group_size or -1
    compressor = BaseCompressor.get_value_from_registry(form)

    def packed(weight: torch.Tensor) -> Packed:
        groups = weight.reshape(len(weight), -1, group if group > 0 else weight.shape[1])
        scales = (groups.abs().amax(-1) / largest).bfloat16()
        parts = {"weight": weight.bfloat16(), "weight_scale": scales}
        return compressor.compress(parts, scheme), weight

    how = QuantizationConfig(
        config_groups={"group_0": scheme},
        format=form,
        quantization_status=QuantizationStatus.COMPRESSED,
        ignore=["lm_head"],
    )
    _write(directory, json.loads(how.model_dump_json()), packed)
    return own(directory)


def mxfp4(directory: Path) -> PreTrainedModel:
    """As gpt-oss is published: experts of 4 bits a number, 32 of them with one exponent.

    Returned is what they stand for.
    """
    generator = torch.Generator().manual_seed(0)
    model, tokenizer = build("gpt_oss"), byte_level_tokenizer(chat=True)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    numbers = torch.tensor([*MXFP4, *(-one for one in MXFP4)])
    kept = {}
    for name, weight in model.named_parameters():
        if not name.endswith(("gate_up_proj", "down_proj")):
            kept[name] = weight.detach().bfloat16()
            weight.data = kept[name].float()
            continue
        experts, inner, outer = weight.shape
        shape = (experts, outer, inner // 32, 16)
        blocks = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        scales = torch.randint(121, 126, shape[:-1], dtype=torch.uint8, generator=generator)
        pairs = numbers[torch.stack([blocks & 15, blocks >> 4], -1).long()].flatten(-2)
        meant = pairs * torch.exp2(scales.float() - 127)[..., None]
        weight.data = meant.reshape(experts, outer, inner).transpose(1, 2).contiguous()
        kept |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    directory.mkdir()
    tokenizer.save_pretrained(directory)
    model.config.save_pretrained(directory)
    _finish(directory, {"quant_method": "mxfp4"}, kept)
    model.config.dtype = torch.float32
    return model


def _write(
    directory: Path, how: Mapping[str, Any], packed: Callable[[torch.Tensor], Packed]
) -> PreTrainedModel:
    """The bundled model, whose projections are quantised. Returns what it stands for."""
    shutil.copytree(MODEL_DIR, directory, ignore=shutil.ignore_patterns("*.safetensors"))
    model = bundled(torch.float32)
    kept = {}
    for name, weight in model.named_parameters():
        stem, _, _ = name.rpartition("weight")
        if stem.endswith("proj."):
            parts, meant = packed(weight.detach())
            kept |= {stem + part: tensor.contiguous() for part, tensor in parts.items()}
        else:
            kept[name] = weight.detach().bfloat16()
            meant = kept[name].float()
        weight.data = meant
    _finish(directory, how, kept)
    return model


def _finish(directory: Path, how: Mapping[str, Any], kept: dict[str, torch.Tensor]) -> None:
    save_file(kept, directory / "model.safetensors", {"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    config |= {"quantization_config": how, "dtype": "bfloat16"}
    (directory / "config.json").write_text(json.dumps(config))


# Each writes a checkpoint to a directory, and returns the model that it must be.
WRITERS: dict[str, Callable[[Path], PreTrainedModel]] = {
    "torchao int8": lambda to: by_transformers(to, TorchAoConfig(Int8WeightOnlyConfig())),
    "torchao int8, activations too": lambda to: by_transformers(
        to, TorchAoConfig(Int8DynamicActivationInt8WeightConfig())
    ),
    "bitsandbytes 4 bit": lambda to: by_transformers(
        to, BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    ),
    "bitsandbytes 4 bit, scales too": lambda to: by_transformers(
        to, BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_use_double_quant=True)
    ),
    "bitsandbytes 8 bit": lambda to: by_transformers(to, BitsAndBytesConfig(load_in_8bit=True)),
    "compressed-tensors fp8": lambda to: compressed(to, "FP8_DYNAMIC", "float-quantized", FP8_MAX),
    "compressed-tensors int4": lambda to: compressed(to, "W4A16", "pack-quantized", 7.5),
    "compressed-tensors int8": lambda to: compressed(to, "W8A8", "int-quantized", 127.0),
    "fp8": fp8,
    "mxfp4": mxfp4,
}
