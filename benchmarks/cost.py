"""What strategies cost in a deeper shape: the layers that they really run, counted.

A few layers more or less are much of a small model and little of a large one: CacheBlend's two
early layers are a quarter of 8 and a fourteenth of 28. So the real code runs on a model with random
weights, as deep as wanted but narrow, and counts token-layers: how often a layer ran over a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory

from transformers import LlamaConfig, LlamaForCausalLM

from fusionrag_integrations.bench.prefix_cache import PrefixCache
from fusionrag_integrations.bench.strategies import Strategy
from fusionrag_integrations.bench.suites import Suite
from fusionrag_integrations.engine import FusionEngine
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.prompt.messages import Prompt
from fusionrag_integrations.serving.answer import Answer
from fusionrag_integrations.store.calibration import Calibration
from fusionrag_integrations.store.kv.disk_budget import Budgets
from fusionrag_integrations.support.progress import Progress

WIDTH = 32


@dataclass(frozen=True, slots=True)
class CostRow:
    """work: token-layers before the first token over those of a full prefill, mean over prompts."""

    strategy: str
    kv: str
    ratio: float
    layers: int
    work: float


def count_work(
    layers: int,
    suite: Suite,
    strategies: Sequence[Strategy],
    calibrated: CausalModel,
    calibration: Calibration | None,
    progress: Progress,
) -> list[CostRow]:
    """Work of each strategy on the suite's prompts, in a model of `layers` layers.

    calibrated: the model that `calibration` is of, whose tokenizer is used too. Its layers are
    taken at the same relative depth.
    """
    model = CausalModel(_narrow(layers), calibrated.tokenizer, "narrow")
    deeper = calibration and replace(
        calibration,
        layers=tuple(sorted({i * layers // calibrated.num_layers for i in calibration.layers})),
    )
    with (
        TemporaryDirectory(prefix="fusionrag-cost-") as directory,
        FusionEngine.open(
            model, Path(directory), chunk_tokens=suite.chunk_tokens, budgets=Budgets(starts=0)
        ) as opened,
    ):
        engine = opened.calibrated(deeper)
        engine.ingest(suite.documents, progress=progress)
        questions = suite.questions(engine)
        cache, rows = PrefixCache(model), []
        for strategy in strategies:
            usages = [_answer(engine, cache, strategy, q.prompt).usage for q in questions]
            work = mean(u.token_layers / (u.prompt_tokens * layers) for u in usages)
            rows.append(CostRow(strategy.name, strategy.placed, strategy.ratio, layers, work))
    return rows


def _answer(engine: FusionEngine, cache: PrefixCache, strategy: Strategy, prompt: Prompt) -> Answer:
    settings = strategy.settings(1)
    if strategy.kv == "prefix":
        return cache.answer(prompt, settings.sampling)
    return engine.answer(prompt, settings)


def _narrow(layers: int) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=2048,
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=4096,
        )
    )
