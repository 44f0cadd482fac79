"""Every selector through the engine: exact at ratio 1, and its budget in between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest

from fusionrag_integrations import Answer, AnswerSettings, FusionEngine
from fusionrag_integrations.prompt import question_prompt
from fusionrag_integrations.selectors import selector_names
from tests.conftest import all_records, town

Ask = Callable[..., Answer]

SELECTORS = [name for name in selector_names() if name != "none"]
LAYERS = 3


@pytest.fixture(scope="module")
def asked(
    model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[FusionEngine, list[dict[str, str]]]:
    """A prompt of five chunks; one is alone in its scope: it has no fused KV and no trace."""
    path = tmp_path_factory.mktemp("selectors") / "store"
    engine = FusionEngine.from_pretrained(model_dir, store=path, chunk_tokens=48)
    engine.ingest([town(1), town(2), replace(town(3, paragraphs=1), scope="alone")])
    records = all_records(engine.store.catalog)
    assert [record.trace is None for record in records] == [False] * 6 + [True]
    texts = [record.chunk.text for record in (*records[2:6], records[6])]
    return engine, question_prompt(texts, "Which house stands in town number 1?")


@pytest.fixture(scope="module")
def ask(asked: tuple[FusionEngine, list[dict[str, str]]]) -> Ask:
    engine, prompt = asked

    @lru_cache
    def ask(**settings: object) -> Answer:
        return engine.answer(prompt, AnswerSettings(max_tokens=8, **settings))

    return ask


@pytest.mark.parametrize("kv", ["isolated", "fused"])
@pytest.mark.parametrize("selector", SELECTORS)
def test_recomputing_all_is_full_attention(ask: Ask, selector: str, kv: str) -> None:
    full = ask(kv="none")
    answer = ask(kv=kv, selector=selector, ratio=1.0)
    assert answer.token_ids == full.token_ids
    assert answer.usage.recompute_ratio == 1.0
    assert answer.usage.token_layers == LAYERS * full.usage.prompt_tokens  # and no probe ran
    assert answer.fused_chunks == (3 if kv == "fused" else 0)  # the first one stands isolated
    assert ask(kv=kv, selector="none").token_ids != full.token_ids  # so it isn't for nothing


SEPARATORS = 4 * 2  # tokens between five chunks, which baselines' probes don't run
WATCHED = 5 * 2  # tokens of five chunks, which the default's runs


@pytest.mark.parametrize("kv", ["isolated", "fused"])
@pytest.mark.parametrize("selector", [name for name in SELECTORS if name != "all"])
def test_work_is_counted_between_the_ends(
    asked: tuple[FusionEngine, list[dict[str, str]]], ask: Ask, selector: str, kv: str
) -> None:
    usage = ask(kv=kv, selector=selector, ratio=0.3).usage
    found = usage.reused_tokens + usage.recomputed_tokens
    assert usage.recomputed_tokens == int(0.3 * found)
    engine, prompt = asked
    beginning = engine.load(prompt, AnswerSettings()).prompt.spans[0].start
    assert beginning > 0
    fresh, rows = usage.fresh_tokens, usage.fresh_tokens + usage.recomputed_tokens
    again = rows - beginning  # behind a probe through all layers
    expected = {
        "cacheblend": 2 * usage.prompt_tokens + rows,  # layers 0 and 1 over all
        "fusionrag": LAYERS * (fresh + WATCHED + again),
        "fusionrag_paper": LAYERS * (fresh - SEPARATORS + again),
        "prophetkv": LAYERS * (fresh - SEPARATORS + again),
        "infoflow": LAYERS * (fresh - SEPARATORS + again),
    }
    assert usage.token_layers == expected.get(selector, LAYERS * rows)
