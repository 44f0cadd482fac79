"""The same gates on a GPU, where there is one: plain PyTorch gives there what it gives here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fusionrag_integrations import Answer, AnswerSettings
from fusionrag_integrations.bench.ttft import Tier, served_prompt
from fusionrag_integrations.model import CausalModel
from tests.reference import Reference
from tests.test_gates import CHUNKS, distance, isolated, prompt_of_chunks, warm
from tests.tiny_models import FACTORIES, build

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FACTORIES)
def test_recompute_everything_is_dense_prefill(family: str, dtype: torch.dtype) -> None:
    model = CausalModel(build(family, dtype).to("cuda"), None, family)
    prompt = prompt_of_chunks()
    kvs = [isolated(model, ids) for ids in CHUNKS]
    logits, keys, values = warm(model, prompt, kvs, prompt.chunk_positions)
    exact_logits, exact = Reference(build(family)).dense(prompt.token_ids)
    tolerance = 1e-3 if dtype == torch.float32 else 5e-2
    assert distance(logits.cpu(), exact_logits[-1]) < tolerance
    assert distance(keys.cpu(), exact[0]) < tolerance
    assert distance(values.cpu(), exact[1]) < tolerance


@pytest.mark.parametrize("tier", ["device", "host", "disk"])
def test_an_answer_end_to_end(model_dir: Path, tier: Tier) -> None:
    """From wherever its KV lies, on an engine that needs neither an index nor a framework."""
    model = CausalModel.load(model_dir, "cuda", "float32")
    settings = AnswerSettings(kv="isolated", selector="all", max_tokens=8)
    with served_prompt(model, 400, tier, None) as (server, prompt):
        *_, answer = server.run(prompt, settings)
        *_, full = server.run(prompt, settings.changed({"kv": "none"}))
        *_, some = server.run(prompt, settings.changed({"selector": "fusionrag", "ratio": 0.15}))
    assert isinstance(answer, Answer)
    assert isinstance(full, Answer)
    assert isinstance(some, Answer)
    assert answer.token_ids == full.token_ids
    assert answer.usage.recomputed_tokens > some.usage.recomputed_tokens > 0
    assert answer.missed_chunks == some.missed_chunks == 0
