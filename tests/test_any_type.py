"""Every type of causal language model in transformers, tiny and random.

It is refused, or answers as under full attention when everything is recomputed: no wrong answer.
One that is refused answers without KV as it generates by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from fusionrag_integrations.errors import UnsupportedModelError
from fusionrag_integrations.execution.admission import check_movable
from fusionrag_integrations.execution.executor import Executor
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.execution.hf.plain_model import PlainModel
from fusionrag_integrations.execution.own_attention import OwnExecutor, OwnInput, OwnPrefill
from fusionrag_integrations.execution.work import complete
from tests.reference import Reference
from tests.test_gates import CHUNKS, isolated, prompt_of_chunks, warm
from tests.tiny_models import COMMON, LATENT, heads

LARGEST = 60_000_000  # weights; some configurations can't be made tiny by these names
EXPERTS = {
    **{"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2},
    **{"moe_intermediate_size": 48, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
    **{"n_shared_experts": 1, "moe_num_experts": 4, "moe_k": 2, "moe_topk": 2},
}


def sizes_of(kind: str) -> dict[str, Any]:
    """What makes a type tiny, by the names that most have in common."""
    latent = hasattr(AutoConfig.for_model(kind).get_text_config(), "kv_lora_rank")
    attention = heads(4, 4, **LATENT, q_lora_rank=16) if latent else heads(4, 2)
    return {**COMMON, **attention, **EXPERTS}


def tiny(kind: str, **more: Any) -> Any:
    """A model of this type, or the reason why there is none."""
    torch.manual_seed(0)
    try:
        config = AutoConfig.for_model(kind, **sizes_of(kind), **more)
        text = config.get_text_config()
        if text is not config:  # which isn't reached by names given to the whole
            for name, value in {**sizes_of(kind), **more}.items():
                if hasattr(text, name):
                    setattr(text, name, value)
        with torch.device("meta"):
            shape = AutoModelForCausalLM.from_config(deepcopy(config))
        if sum(weight.numel() for weight in shape.parameters()) > LARGEST:
            return "it isn't tiny"
        return AutoModelForCausalLM.from_config(config).eval()
    except Exception as error:  # noqa: BLE001 whatever a configuration of odd sizes ends with
        return f"{type(error).__name__}: {error}"


def check_in_full(hf: Any, token_ids: Sequence[int]) -> None:
    """Compare a few tokens with `generate`, where the model can generate at all."""
    ids, asked = torch.tensor([token_ids]), {"max_new_tokens": 4, "eos_token_id": None}
    try:
        said = hf.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **asked)
    except Exception:  # noqa: BLE001 sizes that don't fit each other, with errors of any kind
        return
    executor = OwnExecutor(PlainModel(hf, None, hf.config.model_type))
    prefill = complete(executor, OwnPrefill(executor.model, token_ids))
    logits, tokens = prefill.logits, []
    for at in range(len(token_ids), len(token_ids) + 4):
        tokens.append(int(logits.argmax()))
        (logits,) = executor.run([OwnInput(tokens[-1:], at, prefill.sequence)])
    assert tokens == said[0, len(token_ids) :].tolist()


@pytest.mark.parametrize("kind", MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
def test_no_type_gives_a_wrong_answer(kind: str) -> None:
    for window in (400, 40):  # more and less than the prompt
        hf = tiny(kind, sliding_window=window)
        if isinstance(hf, str):
            pytest.skip(f"transformers makes no tiny {kind}: {hf[:80]}")
        own, prompt = deepcopy(hf), prompt_of_chunks()
        try:
            model = CausalModel(hf, None, kind)
            check_movable(Executor(model))
        except UnsupportedModelError:
            check_in_full(own, prompt.token_ids)
            return
        kvs = [isolated(model, ids) for ids in CHUNKS]
        logits, *_ = warm(model, prompt, kvs, prompt.chunk_positions)
        (*_, expected), _ = Reference(own).dense(prompt.token_ids)
        torch.testing.assert_close(logits, expected, rtol=0.0, atol=1e-4 * expected.abs().max())
