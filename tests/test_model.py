"""Loading, refusing and identifying models."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
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
from fusionrag_integrations.errors import (
    InvalidInputError,
    StoreError,
    StoreMismatchError,
    UnsupportedModelError,
)
from fusionrag_integrations.execution.hf import peft_adapters
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.execution.hf.supported import context_window, refuse_unsupported
from tests.conftest import town
from tests.tiny_models import COMMON, FACTORIES, build, heads, of_text, rope
from tests.tiny_tokenizers import byte_level_tokenizer


@pytest.mark.parametrize("family", FACTORIES)
def test_supported_families_pass(family: str) -> None:
    refuse_unsupported(build(family).config)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (MambaConfig(), "no per-token state"),
        (SimpleNamespace(model_type="llama4_text"), "chunked attention"),
        (SimpleNamespace(model_type="qwen3_next"), "no per-token state"),
        (SimpleNamespace(model_type="brand_new"), "no rope_parameters"),
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
    assert context_window(longrope, None) == 128
    yarn = LlamaConfig(
        **COMMON, **heads(4, 2), **rope("yarn", factor=8.0, original_max_position_embeddings=64)
    )
    assert context_window(yarn, None) == 512


def test_loading_nothing_says_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"config\.json"):
        CausalModel.load(tmp_path)
    with pytest.raises(InvalidInputError, match="not a model"):
        CausalModel.load(tmp_path / "absent")


MULTIMODAL = {
    "gemma3": {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "llava": {},
    "mistral3": {},
}


@pytest.mark.parametrize("kind", MULTIMODAL)
def test_the_text_part_of_a_multimodal_model(kind: str, tmp_path: Path) -> None:
    whole = of_text(kind, **MULTIMODAL[kind])
    whole.save_pretrained(tmp_path)
    byte_level_tokenizer().save_pretrained(tmp_path)
    loaded = CausalModel.load(tmp_path)
    ids = torch.arange(10, 50)[None]
    torch.testing.assert_close(loaded.hf(ids).logits, whole(input_ids=ids).logits)


def test_unknown_dtype_lists_the_known(tmp_path: Path) -> None:
    build("llama_gqa2").save_pretrained(tmp_path)
    with pytest.raises(InvalidInputError, match="bfloat16"):
        CausalModel.load(tmp_path, dtype="int3")


class TestAdapters:
    """LoRA and the like are part of a model: none is served as its base model, or as another."""

    def lora(self, model_dir: Path, seed: int = 0) -> Any:
        """A base model with an adapter that changes what it says."""
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(model_dir)
        return get_peft_model(model, LoraConfig(init_lora_weights=False))

    def config_of(self, directory: Path, **fields: object) -> Path:
        """What peft saves of an adapter, but for its weights."""
        directory.mkdir(exist_ok=True)
        (directory / "adapter_config.json").write_text(json.dumps(fields))
        return directory

    def test_a_directory_is_its_base_model_with_the_adapter(
        self, model_dir: Path, tmp_path: Path
    ) -> None:
        adapted = self.lora(model_dir)
        adapted.save_pretrained(tmp_path / "adapter")
        loaded = CausalModel.load(tmp_path / "adapter")
        ids = torch.arange(3, 40)[None]
        torch.testing.assert_close(loaded.hf(ids).logits, adapted(ids).logits, rtol=0, atol=1e-4)
        assert loaded.source == str((tmp_path / "adapter").resolve())
        assert loaded.signature("") == CausalModel.load(tmp_path / "adapter").signature("")
        others = [CausalModel.load(model_dir)]
        self.lora(model_dir, seed=1).save_pretrained(tmp_path / "other")
        others.append(CausalModel.load(tmp_path / "other"))
        assert loaded.signature("") not in {one.signature("") for one in others}

    def test_an_adapter_may_have_a_tokenizer_of_its_own(
        self, model_dir: Path, tmp_path: Path
    ) -> None:
        self.lora(model_dir).save_pretrained(tmp_path / "adapter")
        tokenizer = AutoTokenizer.from_pretrained(model_dir)
        tokenizer.chat_template = "{{ messages[0]['content'] }} of its own"
        tokenizer.save_pretrained(tmp_path / "adapter")
        loaded = CausalModel.load(tmp_path / "adapter")
        assert loaded.tokenizer.chat_template == tokenizer.chat_template

    def test_a_model_in_hand_keeps_its_adapters(self, model_dir: Path, tmp_path: Path) -> None:
        adapted, tokenizer = self.lora(model_dir), AutoTokenizer.from_pretrained(model_dir)
        ids = torch.arange(3, 40)[None]
        expected = adapted(ids).logits
        with FusionEngine.from_model(adapted, tokenizer, store=tmp_path / "store") as engine:
            engine.ingest([town(0)])
            assert engine.check(1).exact
            torch.testing.assert_close(engine.model.hf(ids).logits, expected)

    def test_other_adapters_are_another_model(self, model_dir: Path, tmp_path: Path) -> None:
        adapted, tokenizer = self.lora(model_dir), AutoTokenizer.from_pretrained(model_dir)
        store = tmp_path / "store"
        with FusionEngine.from_model(adapted, tokenizer, store=store) as engine:
            engine.ingest([town(0)])
            adapted.add_adapter("other", LoraConfig(init_lora_weights=False))
            adapted.set_adapter("other")
            with pytest.raises(StoreError, match=r"weights or adapters of .* were changed"):
                engine.answer("Who was it?")
            with pytest.raises(StoreError, match=r"weights or adapters of .* were changed"):
                engine.ingest([town(1)])
            adapted.set_adapter("default")
            engine.answer("Who was it?")
        adapted.set_adapter("other")
        with pytest.raises(StoreMismatchError):
            FusionEngine.from_model(adapted, tokenizer, store=store)

    def test_weights_that_do_not_fit_are_not_passed_over(
        self, model_dir: Path, tmp_path: Path
    ) -> None:
        """As of an adapter for the multimodal model, whose layers have other names."""
        self.lora(model_dir).save_pretrained(tmp_path)
        file = tmp_path / "adapter_model.safetensors"
        weights = load_file(file)
        renamed = {
            name.replace("layers", "language_model.layers"): w for name, w in weights.items()
        }
        save_file(renamed, file, {"format": "pt"})
        with pytest.raises(InvalidInputError, match="missing adapter keys"):
            CausalModel.load(tmp_path)

    @pytest.mark.parametrize(
        "config", [{"peft_type": "XLORA"}, {"peft_type": "LORA", "alora_invocation_tokens": [5]}]
    )
    def test_adapters_with_gates_are_refused(self, tmp_path: Path, config: dict[str, Any]) -> None:
        with pytest.raises(UnsupportedModelError, match="more than the model's layers"):
            CausalModel.load(self.config_of(tmp_path / "adapter", **config))

    def test_adapters_that_are_prompts_are_refused(self, model_dir: Path, tmp_path: Path) -> None:
        model = AutoModelForCausalLM.from_pretrained(model_dir)
        tokenizer = AutoTokenizer.from_pretrained(model_dir)
        config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
        adapted = get_peft_model(model, config)
        with pytest.raises(UnsupportedModelError, match="more than the model's layers"):
            CausalModel.of(adapted, tokenizer)
        adapted.save_pretrained(tmp_path / "adapter")
        with pytest.raises(UnsupportedModelError, match="more than the model's layers"):
            CausalModel.load(tmp_path / "adapter")

    def test_what_is_broken_is_named(
        self, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(InvalidInputError, match="doesn't name its base model"):
            CausalModel.load(self.config_of(tmp_path / "nothing"))
        named = {"peft_type": "LORA", "base_model_name_or_path": str(model_dir)}
        empty = self.config_of(tmp_path / "empty", **named)
        with pytest.raises(InvalidInputError, match=r"The adapter at .*empty.* can't be put into"):
            CausalModel.load(empty)
        monkeypatch.setattr(peft_adapters, "find_spec", lambda name: None)
        with pytest.raises(InvalidInputError, match=r"pip install .*\[peft\]"):
            CausalModel.load(empty)

    @pytest.mark.parametrize("content", ["{", "[]", "{}"])
    def test_one_whose_config_says_nothing(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "adapter_config.json").write_text(content)
        with pytest.raises(InvalidInputError, match="doesn't name its base model"):
            CausalModel.load(tmp_path)


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
