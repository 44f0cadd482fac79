"""Models of any type are tried when a store is made for them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.errors import UnsupportedModelError
from fusionrag_integrations.execution.admission import check_movable
from fusionrag_integrations.execution.executor import Executor
from fusionrag_integrations.execution.hf.model import CausalModel
from tests.tiny_models import FACTORIES, build, heads, of
from tests.tiny_tokenizers import byte_level_tokenizer


def admit(model: CausalModel) -> None:
    check_movable(Executor(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FACTORIES)
def test_tested_families_are_admitted_without_a_word(
    family: str, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        admit(CausalModel(build(family, dtype), None, family))
    assert not [record for record in caplog.records if record.name.startswith("fusionrag")]


def test_another_type_that_passes_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    hf = build("llama_gqa2")
    hf.config.model_type = "brand_new"
    admit(CausalModel(hf, None, "new"))
    (record,) = caplog.records
    assert "of a type that isn't tested with every release, 'brand_new'" in record.message


def with_positions_added(family: str) -> CausalModel:
    """A model whose layers are told where a token stands in another way, too."""
    hf = build(family)
    table = torch.randn(1024, hf.config.hidden_size, generator=torch.Generator().manual_seed(0))

    def add(layer: torch.nn.Module, args: tuple[torch.Tensor], given: dict[str, object]) -> object:
        at = given["position_ids"]
        return (args[0] + table[at], *args[1:]), given

    hf.model.layers[1].register_forward_pre_hook(add, with_kwargs=True)
    return CausalModel(hf, None, family)


def test_positions_beside_rotations_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="moved keys differ from those computed there"):
        admit(with_positions_added("llama_gqa2"))


MIXED = {
    "as a convolution does": lambda out: out + out.roll(1, dims=1),
    "in any order": lambda out: out + out.mean(1, keepdim=True),
}


@pytest.mark.parametrize("mix", MIXED.values(), ids=MIXED)
def test_layers_that_mix_rows_outside_attention_are_refused(
    mix: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    hf = build("qwen3")
    hf.model.layers[0].mlp.register_forward_hook(lambda mlp, args, out: mix(out))
    with pytest.raises(UnsupportedModelError, match="rows in any order differ from a prefill's"):
        admit(CausalModel(hf, None, "mixing"))


def test_what_few_tokens_do_is_seen() -> None:
    """One in eight of the vocabulary takes something of the token before."""

    def take(embedding: torch.nn.Module, args: tuple[torch.Tensor], out: torch.Tensor) -> object:
        return torch.where((args[0] % 8 == 0)[..., None], out + out.roll(1, dims=1), out)

    hf = build("qwen3")
    hf.model.embed_tokens.register_forward_hook(take)
    with pytest.raises(UnsupportedModelError, match="rows in any order differ from a prefill's"):
        admit(CausalModel(hf, None, "bigrams"))


def test_a_rotation_that_changes_far_away_is_seen_where_nobody_tested_the_type() -> None:
    hf = build("qwen3")
    hf.config.model_type = "brand_new"
    rotary, forward = hf.model.rotary_emb, hf.model.rotary_emb.forward
    rotary.forward = lambda x, position_ids: forward(x, position_ids.clamp(max=400))
    with pytest.raises(UnsupportedModelError, match="computed"):
        admit(CausalModel(hf, None, "clamped"))


def test_windows_that_attention_is_not_told_of_are_refused() -> None:
    """Qwen2-MoE's are in the model's masks alone."""
    torch.manual_seed(0)
    more = {"num_experts": 4, "moe_intermediate_size": 48, "num_experts_per_tok": 2}
    windowed = of(
        "qwen2_moe",
        **heads(4, 2),
        **more,
        use_sliding_window=True,
        sliding_window=24,
        max_window_layers=1,
    )
    with pytest.raises(UnsupportedModelError, match="told of a window of None"):
        admit(CausalModel(windowed().eval(), None, "windowed"))


def test_a_store_is_made_only_for_a_model_that_is_admitted(tmp_path: Path) -> None:
    model = with_positions_added("llama_gqa2")
    model.tokenizer = byte_level_tokenizer()
    with pytest.raises(UnsupportedModelError):
        FusionEngine.open(model, tmp_path / "store")
    assert not (tmp_path / "store").exists()
