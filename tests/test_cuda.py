"""The same gates on a GPU, where there is one: plain PyTorch gives there what it gives here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fusionrag_integrations import AnswerSettings, FusionEngine
from fusionrag_integrations.model import CausalModel
from tests.conftest import town
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


def test_an_answer_end_to_end(model_dir: Path, tmp_path: Path) -> None:
    engine = FusionEngine.from_pretrained(
        model_dir, store=tmp_path / "store", device="cuda", dtype="float32", chunk_tokens=48
    )
    engine.ingest([town(1), town(2)])
    texts = [hit.chunk.text for hit in engine.corpus.search("town", 4)]
    prompt = "\n\n".join(texts) + "\n\nWhich town?"
    settings = AnswerSettings(selector="all", max_tokens=8)
    answer = engine.answer(prompt, settings)
    full = engine.answer(prompt, settings.changed({"kv": "none"}))
    assert answer.token_ids == full.token_ids
    assert answer.usage.recomputed_tokens > 0
