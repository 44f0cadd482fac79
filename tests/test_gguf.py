"""Models from GGUF files: what is loaded is what was written, or it is refused."""

from __future__ import annotations

import os
import shutil
import tomllib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from fusionrag_integrations import AnswerSettings, FusionEngine
from fusionrag_integrations.cli import main
from fusionrag_integrations.errors import InvalidInputError, UnsupportedModelError
from fusionrag_integrations.execution.executor import Executor
from fusionrag_integrations.execution.hf import gguf as room
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.store.calibration import Calibration, write_calibration
from fusionrag_integrations.store.layout import CALIBRATION_FILE
from tests.conftest import town
from tests.reference import Reference
from tests.tiny_gguf import gguf, write_gguf
from tests.tiny_models import COMMON, FACTORIES, GEMMA_ROPE, build, heads
from tests.tiny_tokenizers import byte_level_tokenizer

# What GGUF files can't say of these is as transformers takes it for given.
OWN_FACTORIES: dict[str, Callable[[], PreTrainedModel]] = {
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**COMMON, **heads(2, 1, head_dim=128))),
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(
            **COMMON | {"num_hidden_layers": 6},
            **heads(2, 1, head_dim=32),
            **GEMMA_ROPE,
            sliding_window=24,
        )
    ),
    "qwen3moe": lambda: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            **COMMON,
            **heads(2, 1, head_dim=128),
            num_experts=4,
            num_experts_per_tok=2,
            norm_topk_prob=True,
        )
    ),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**COMMON, **heads(4, 2), sliding_window=None)),
}
FAMILIES = ("llama_gqa2", "llama_mha_tied", "mistral", "qwen2", *OWN_FACTORIES)


@lru_cache
def tokenizer() -> Any:
    return byte_level_tokenizer(chat=True)


@lru_cache
def model_of(family: str) -> PreTrainedModel:
    if family not in OWN_FACTORIES:
        return build(family)
    torch.manual_seed(0)
    return OWN_FACTORIES[family]().eval()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "tiny.gguf", model_of("llama_gqa2"), tokenizer())


@pytest.fixture
def talking(model_dir: Path, tmp_path: Path) -> Path:
    """The tiny model that the other tests ask, as a GGUF file."""
    model = LlamaForCausalLM.from_pretrained(model_dir)
    return write_gguf(tmp_path / "talking.gguf", model, tokenizer())


class TestLoading:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_it_is_the_model_that_was_written(self, family: str, tmp_path: Path) -> None:
        written = model_of(family)
        loaded = CausalModel.load(write_gguf(tmp_path / "tiny.gguf", written, tokenizer()))
        weights = loaded.hf.state_dict()
        assert weights.keys() == written.state_dict().keys()
        for name, weight in written.state_dict().items():
            torch.testing.assert_close(weights[name], weight, rtol=0.0, atol=1e-6)
        ids = [5, 60, 7, 8, 30, 40] * 12
        logits, _ = Executor(loaded).prefill_dense(ids)
        expected, _ = Reference(written).dense(ids)
        torch.testing.assert_close(logits, expected[-1], rtol=0.0, atol=1e-4)
        assert loaded.context_window == written.config.max_position_embeddings

    def test_with_its_tokenizer_and_chat_template(self, file: Path) -> None:
        found, own = CausalModel.load(file).tokenizer, tokenizer()
        text = "The quick <|end|> fox, it's by  the\nriver."
        assert found(text).input_ids == own(text).input_ids
        assert found.is_fast
        assert (found.bos_token, found.eos_token) == (own.bos_token, own.eos_token)
        assert found.chat_template == own.chat_template

    def test_blocks_are_unpacked(self, tmp_path: Path) -> None:
        written = model_of("qwen2")
        file = write_gguf(tmp_path / "tiny.gguf", written, tokenizer(), quantised="Q8_0")
        name, kind = "model.layers.1.mlp.up_proj.weight", gguf.GGMLQuantizationType.Q8_0
        weight = written.state_dict()[name].numpy()
        rounded = gguf.dequantize(gguf.quantize(weight, kind), kind)
        assert not np.array_equal(rounded, weight)
        np.testing.assert_array_equal(CausalModel.load(file).hf.state_dict()[name], rounded)

    def test_dtype(self, file: Path) -> None:
        assert CausalModel.load(file).dtype == torch.float32
        assert CausalModel.load(file, dtype="bfloat16").dtype == torch.bfloat16

    def test_a_file_in_a_directory(self, file: Path) -> None:
        model = CausalModel.load(file.parent, gguf_file=file.name)
        assert (model.source, model.name) == (str(file), "tiny")

    def test_a_file_of_a_hub_repository(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its place in the hub's cache is a link, whose target has no name."""
        blob, link = file.with_name("0f6e"), file.with_name("linked.gguf")
        file.rename(blob)
        link.symlink_to(blob)
        asked: list[tuple[str, str]] = []

        def cached(*names: str) -> str:
            asked.append(names)  # type: ignore[arg-type]
            return str(link)

        monkeypatch.setattr(room, "cached_file", cached)
        assert CausalModel.load("own/tiny-GGUF", gguf_file="linked.gguf").source == str(link)
        assert asked == [("own/tiny-GGUF", "linked.gguf")]

    def test_a_relative_path(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(file.parent)
        assert CausalModel.load("tiny.gguf").source == str(file)

    def test_it_can_be_saved_and_is_the_same_model(self, file: Path, tmp_path: Path) -> None:
        model = CausalModel.load(file)
        model.hf.save_pretrained(tmp_path / "saved")
        model.tokenizer.save_pretrained(tmp_path / "saved")
        assert CausalModel.load(tmp_path / "saved").signature("S") == model.signature("S")


class TestSignature:
    def test_is_the_same_wherever_the_file_is(self, file: Path, tmp_path: Path) -> None:
        (tmp_path / "other").mkdir()
        copy = shutil.copy(file, tmp_path / "other" / "renamed.gguf")
        assert CausalModel.load(copy).signature("S") == CausalModel.load(file).signature("S")

    def test_files_beside_it_and_in_the_working_directory_change_nothing(
        self, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        alone = CausalModel.load(file).signature("S")
        byte_level_tokenizer(vocabulary=400).save_pretrained(file.parent)
        working = tmp_path / "working"
        working.mkdir()
        write_gguf(working / file.name, build("llama_mha_tied"), tokenizer())
        monkeypatch.chdir(working)
        assert CausalModel.load(file).signature("S") == alone


class TestStore:
    def test_it_is_opened_again_with_its_own_model(self, talking: Path, tmp_path: Path) -> None:
        (tmp_path / "town.txt").write_text(town(0).text)
        store = tmp_path / "store"
        runs = [
            [
                "index",
                tmp_path / "town.txt",
                "--store",
                store,
                "--model",
                talking,
                "--chunk-tokens",
                48,
            ],
            ["ask", "Where is the fox?", "--store", store, "--max-tokens", 2],
        ]
        for run in runs:
            result = CliRunner().invoke(main, [str(argument) for argument in run])
            assert result.exit_code == 0, result.output
        engine = FusionEngine.from_pretrained(talking, store=store)
        assert engine.store.catalog.info.model_source == str(talking)
        texts = [hit.chunk.text for hit in engine.store.search("fox", 3)]
        answer = engine.answer("\n\n".join(texts), AnswerSettings(max_tokens=2))
        assert answer.fused_chunks + answer.isolated_chunks == len(texts)

    def test_a_calibration_lies_beside_the_file(self, talking: Path, tmp_path: Path) -> None:
        engine = FusionEngine.from_pretrained(talking, store=tmp_path / "store")
        assert engine.calibration is None
        measured = Calibration(layers=(0, 2), sensitivity=1.0)
        signature = engine.store.catalog.info.signature
        write_calibration(talking.parent / CALIBRATION_FILE, signature, measured, {})
        assert FusionEngine.open(engine.model, tmp_path / "other").calibration == measured


class TestRefused:
    def refuse(self, file: object, error: type[Exception], *said: str, **given: Any) -> None:
        with pytest.raises(error) as refused:
            CausalModel.load(file, **given)  # type: ignore[arg-type]
        assert [part for part in said if part not in str(refused.value)] == []

    @pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.2, 0.5, 0.99])
    def test_a_file_that_is_cut_short(self, file: Path, share: float) -> None:
        os.truncate(file, int(file.stat().st_size * share))
        self.refuse(file, InvalidInputError, str(file))

    @pytest.mark.parametrize("content", [b"GGUF", b"GGUF" + bytes(99), b"{}", b"\xff" * 4000])
    def test_a_file_of_another_kind(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "other.gguf").write_bytes(content)
        self.refuse(
            tmp_path / "other.gguf", InvalidInputError, "not a whole GGUF file", "config.json"
        )

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        self.refuse(tmp_path / "no.gguf", InvalidInputError, "There is no file", "no.gguf")
        self.refuse(tmp_path, InvalidInputError, "no.gguf", gguf_file="no.gguf")
        absent = tmp_path / "absent"
        self.refuse(absent, InvalidInputError, "no.gguf", str(absent), gguf_file="no.gguf")

    def test_another_architecture_names_the_supported(self, tmp_path: Path) -> None:
        file = tmp_path / "other.gguf"
        writer = gguf.GGUFWriter(file, "starcoder2")
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        self.refuse(file, UnsupportedModelError, "'starcoder2'", "gemma3, llama, phi3, qwen2")

    @pytest.mark.parametrize(
        ("what", "metadata", "tensors"),
        [
            ("the RoPE scaling", {"rope.scaling.type": "yarn"}, {}),
            ("the RoPE scaling", {"rope.scaling.factor": 8.0}, {}),
            ("the RoPE scaling", {"rope.scale_linear": 2.0}, {}),
            ("the RoPE scaling", {}, {"rope_freqs.weight": np.ones(8, np.float32)}),
            ("the partial rotation", {"rope.dimension_count": 8}, {}),
            ("the sliding window", {"attention.sliding_window": 64}, {}),
            ("some tensors", {}, {"blk.1.attn_q.bias": np.ones(64, np.float32)}),
        ],
    )
    def test_what_transformers_would_pass_over(
        self, tmp_path: Path, what: str, metadata: Any, tensors: Any
    ) -> None:
        file = tmp_path / "tiny.gguf"
        write_gguf(file, model_of("phi3"), tokenizer(), metadata, tensors)
        self.refuse(file, UnsupportedModelError, f"doesn't read {what} of")

    def test_windows_that_a_family_has_no_place_for(self, tmp_path: Path) -> None:
        metadata = {"attention.sliding_window": 64}
        file = write_gguf(tmp_path / "tiny.gguf", model_of("mistral"), tokenizer(), metadata)
        self.refuse(file, UnsupportedModelError, "sliding window")

    def test_experts_of_another_size(self, tmp_path: Path) -> None:
        metadata = {"expert_feed_forward_length": 1536}
        file = write_gguf(tmp_path / "tiny.gguf", model_of("qwen3moe"), tokenizer(), metadata)
        self.refuse(file, UnsupportedModelError, "the size of the experts")

    def test_another_pattern_of_windows(self, tmp_path: Path) -> None:
        metadata = {"attention.sliding_window_pattern": 2}
        file = write_gguf(tmp_path / "tiny.gguf", model_of("gemma3"), tokenizer(), metadata)
        self.refuse(file, UnsupportedModelError, "sliding window")

    def test_a_tensor_that_is_missing(self, tmp_path: Path) -> None:
        for layers in (4, 1 << 30):
            more = {"block_count": layers}
            file = write_gguf(tmp_path / "tiny.gguf", model_of("qwen2"), tokenizer(), more)
            self.refuse(file, UnsupportedModelError, "some tensors")

    def test_a_damaged_vocabulary(self, file: Path) -> None:
        content = file.read_bytes()
        assert content.count(b"\xc4\xa0which") == 1
        file.write_bytes(content.replace(b"\xc4\xa0which", b"\xc4\xa0whit ", 1))
        self.refuse(file, InvalidInputError, "can't be loaded", str(file))

    def test_harmless_entries_are_not_refused(self, tmp_path: Path) -> None:
        metadata = {
            "rope.scaling.type": "none",
            "rope.scaling.original_context_length": 512,
            "attention.sliding_window": 512,
        }
        CausalModel.load(write_gguf(tmp_path / "a.gguf", model_of("phi3"), tokenizer(), metadata))


def test_the_extra_holds_what_loading_asks_for() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    assert project["project"]["optional-dependencies"]["gguf"] == list(room.REQUIREMENTS)


def test_without_the_extra_its_parts_are_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "REQUIREMENTS", ("gguf>=99", "no-such-package>=1", "torch>=2"))
    with pytest.raises(InvalidInputError, match=r"needs gguf>=99 and no-such-package>=1: pip ins"):
        CausalModel.load(file)


def test_varied_families_that_files_hold_is_compared() -> None:
    families = {family.split("_")[0] for family in (*FACTORIES, *OWN_FACTORIES)}
    assert set(room.ARCHITECTURES) <= families
