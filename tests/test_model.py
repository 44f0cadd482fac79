"""Loading, refusing and identifying models."""

from __future__ import annotations

import json
import re
import shutil
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import normalizers, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    Phi3Config,
    Qwen2Config,
)

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.errors import InvalidInputError, UnsupportedModelError
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.execution.hf.supported import context_window, refuse_unsupported
from tests.tiny_models import COMMON, FACTORIES, build, heads, rope
from tests.tiny_tokenizers import byte_level_tokenizer


@pytest.mark.parametrize("family", FACTORIES)
def test_supported_families_pass(family: str) -> None:
    refuse_unsupported(build(family).config)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (MambaConfig(), "no per-token state"),
        (SimpleNamespace(model_type="deepseek_v3"), "latent attention"),
        (SimpleNamespace(model_type="llama4_text"), "chunked attention"),
        (SimpleNamespace(model_type="qwen3_next"), "linear attention"),
        (SimpleNamespace(model_type="brand_new"), "Supported types: gemma3_text, glm4, llama"),
        (
            Qwen2Config(
                **COMMON,
                **heads(4, 2),
                layer_types=["full_attention", "chunked_attention", "full_attention"],
            ),
            "chunked_attention layers",
        ),
    ],
)
def test_unsupported_models_are_refused_with_the_reason(config: object, reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        refuse_unsupported(config)


def test_context_ends_where_scaling_would_switch() -> None:
    longrope = Phi3Config(
        **COMMON | {"max_position_embeddings": 512},
        **heads(4, 2),
        original_max_position_embeddings=128,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10_000.0,
            "short_factor": [1.0] * 8,
            "long_factor": [2.0] * 8,
            "original_max_position_embeddings": 128,
        },
    )
    assert context_window(longrope) == 128
    yarn = LlamaConfig(
        **COMMON, **heads(4, 2), **rope("yarn", factor=8.0, original_max_position_embeddings=64)
    )
    assert context_window(yarn) == 512


def test_loading_nothing_says_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"config\.json"):
        CausalModel.load(tmp_path)
    with pytest.raises(InvalidInputError, match="not a model"):
        CausalModel.load(tmp_path / "absent")


def test_unknown_dtype_lists_the_known(tmp_path: Path) -> None:
    build("llama_gqa2").save_pretrained(tmp_path)
    with pytest.raises(InvalidInputError, match="bfloat16"):
        CausalModel.load(tmp_path, dtype="int3")


class TestAdapters:
    """LoRA and the like are refused by name: none is served as its base model."""

    MERGE = r"merge_and_unload\(\)"

    def adapter(self, directory: Path, kind: str = "LORA") -> Path:
        """What peft saves of an adapter, but for its weights."""
        directory.mkdir(exist_ok=True)
        config = {"peft_type": kind, "base_model_name_or_path": "some/base-model"}
        (directory / "adapter_config.json").write_text(json.dumps(config))
        return directory

    @pytest.mark.parametrize("kind", ["LORA", "PREFIX_TUNING"])
    @pytest.mark.parametrize("as_text", [True, False])
    def test_a_directory_of_one(self, tmp_path: Path, kind: str, as_text: bool) -> None:
        path = self.adapter(tmp_path / "own-adapter", kind)
        with pytest.raises(
            UnsupportedModelError, match=f"own-adapter.*{kind}.*some/base-model"
        ) as e:
            CausalModel.load(str(path) if as_text else path)
        assert re.search(self.MERGE, str(e.value))
        with pytest.raises(UnsupportedModelError, match=self.MERGE):
            FusionEngine.from_pretrained(path, store=tmp_path / "store")
        assert not (tmp_path / "store").exists()

    def test_one_beside_a_whole_model(self, model_dir: Path, tmp_path: Path) -> None:
        """Whether transformers loads it depends on what else is installed."""
        path = shutil.copytree(model_dir, tmp_path / "both")
        with pytest.raises(UnsupportedModelError, match="adapter"):
            CausalModel.load(self.adapter(path))

    @pytest.mark.parametrize("content", ["{", "[]", "{}"])
    def test_one_whose_config_says_nothing(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "adapter_config.json").write_text(content)
        with pytest.raises(UnsupportedModelError, match=self.MERGE):
            CausalModel.load(tmp_path)

    def test_a_model_that_has_one(self, model_dir: Path) -> None:
        """Around it, or put into its layers, as `load_adapter` does."""

        class Wrapped(torch.nn.Module):
            def __init__(self, base: torch.nn.Module) -> None:
                super().__init__()
                self.base_model = base

        Wrapped.__module__ = "peft.tuners.lora.layer"  # as if it were peft's
        model = AutoModelForCausalLM.from_pretrained(model_dir)
        tokenizer = AutoTokenizer.from_pretrained(model_dir)
        with pytest.raises(UnsupportedModelError, match=f"adapter.*{self.MERGE}"):
            CausalModel(Wrapped(model), tokenizer, str(model_dir))  # type: ignore[arg-type]
        attention = model.model.layers[0].self_attn
        plain = attention.q_proj
        attention.q_proj = Wrapped(plain)
        with pytest.raises(UnsupportedModelError, match=f"adapter.*{self.MERGE}"):
            CausalModel(model, tokenizer, str(model_dir))
        attention.q_proj = plain  # merged
        assert CausalModel(model, tokenizer, str(model_dir)).num_layers == 3

    def test_models_of_peft_itself(self, model_dir: Path, tmp_path: Path) -> None:
        peft = pytest.importorskip("peft")
        model = AutoModelForCausalLM.from_pretrained(model_dir)
        tokenizer = AutoTokenizer.from_pretrained(model_dir)
        adapted = peft.get_peft_model(model, peft.LoraConfig(init_lora_weights=False))
        for given in (adapted, adapted.get_base_model()):
            with pytest.raises(UnsupportedModelError, match=self.MERGE):
                CausalModel(given, tokenizer, str(model_dir))
        adapted.save_pretrained(tmp_path / "adapter")
        with pytest.raises(UnsupportedModelError, match="LORA"):
            CausalModel.load(tmp_path / "adapter")
        merged = CausalModel(adapted.merge_and_unload(), tokenizer, str(model_dir))
        assert merged.signature("") != CausalModel.load(model_dir).signature("")


class TestSignature:
    def model(self, **changes: object) -> CausalModel:
        torch.manual_seed(0)
        hf = LlamaForCausalLM(LlamaConfig(**COMMON, **heads(4, 2)))
        for name, value in changes.items():
            setattr(hf.config, name, value)
        return CausalModel(hf, deepcopy(byte_level_tokenizer()), "tiny")

    def test_is_the_same_for_the_same(self) -> None:
        assert self.model().signature("S") == self.model().signature("S")

    def test_changes_with_everything_that_changes_kv(self) -> None:
        plain = self.model()
        one_weight = self.model()
        with torch.no_grad():
            one_weight.hf.model.layers[1].self_attn.k_proj.weight[0, 0] += 1e-3
        half = self.model()
        half.hf.to(torch.bfloat16)
        signatures = [
            plain.signature("S"),
            plain.signature("S "),
            one_weight.signature("S"),
            half.signature("S"),
            self.model(rope_parameters={"rope_type": "default", "rope_theta": 5e5}).signature("S"),
        ]
        assert len(set(signatures)) == len(signatures)

    def test_changes_with_what_the_tokenizer_does(self) -> None:
        signatures = [self.model().signature("S")]
        for change in (
            lambda t: t.add_tokens(["lamps"]),
            lambda t: t.add_special_tokens({"additional_special_tokens": ["<|new|>"]}),
            lambda t: setattr(t.backend_tokenizer, "normalizer", normalizers.NFC()),
            lambda t: setattr(t.backend_tokenizer, "normalizer", normalizers.NFKC()),
            lambda t: setattr(t.backend_tokenizer, "pre_tokenizer", pre_tokenizers.ByteLevel(True)),
            lambda t: setattr(t, "_tokenizer", byte_level_tokenizer(vocabulary=300)._tokenizer),
        ):
            model = self.model()
            change(model.tokenizer)
            signatures.append(model.signature("S"))
        assert len(set(signatures)) == len(signatures)

    @pytest.mark.parametrize(
        "change",
        [
            lambda t: t("a b", truncation=True, max_length=1),
            lambda t: t(["a", "a b"], padding=True),
            lambda t: t(["a", "a b"], padding="max_length", max_length=9, padding_side="left"),
            lambda t: t("<s>", split_special_tokens=True),
            lambda t: t.backend_tokenizer.enable_padding(length=5),
            lambda t: t.backend_tokenizer.enable_truncation(5, stride=2),
            lambda t: setattr(t, "padding_side", "left"),
            lambda t: setattr(t, "model_max_length", 7),
        ],
    )
    def test_stays_whatever_was_set_on_the_tokenizer(self, change: Any) -> None:
        model = self.model()
        change(model.tokenizer)
        assert model.signature("S") == self.model().signature("S")

    def test_stays_when_model_and_tokenizer_are_saved_elsewhere(self, tmp_path: Path) -> None:
        signatures = []
        for name, call in (("one", {}), ("other", {"padding": True, "truncation": True})):
            model = self.model()
            model.tokenizer(["a", "a b"], **call)
            model.hf.save_pretrained(tmp_path / name)
            model.tokenizer.save_pretrained(tmp_path / name)
            signatures.append(CausalModel.load(tmp_path / name).signature("S"))
        assert signatures[0] == signatures[1]
