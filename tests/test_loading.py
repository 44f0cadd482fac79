"""Which KV a chunk gets by where it stands: isolated at a prompt's start, fused behind others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fusionrag_integrations import AnswerSettings, FusionEngine
from fusionrag_integrations.documents.chunk_record import ChunkRecord
from fusionrag_integrations.execution.executor import Executor, SequenceInput
from fusionrag_integrations.execution.fidelity import ReusedPrompt, answer_fully
from fusionrag_integrations.execution.placement import place_in_buffer
from fusionrag_integrations.prompt import question_prompt
from fusionrag_integrations.prompt.messages import Message
from fusionrag_integrations.selectors import make_selector
from fusionrag_integrations.serving.loading import LoadedPrompt
from tests.conftest import all_records, town
from tests.test_gates import TOLERANCE

AS_IT_STANDS = AnswerSettings(kv="fused", selector="none", max_tokens=4)
AS_STORED = replace(AS_IT_STANDS, corrected=False)
UNKNOWN = "Nobody has ever written this before. "


@pytest.fixture(scope="module")
def indexed(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> FusionEngine:
    """Two towns, six chunks; nobody changes this store."""
    path = tmp_path_factory.mktemp("loading") / "store"
    engine = FusionEngine.from_pretrained(model_dir, store=path, chunk_tokens=48)
    engine.ingest([town(0), town(1)])
    return engine


@pytest.fixture
def records(indexed: FusionEngine) -> list[ChunkRecord]:
    return all_records(indexed.store.catalog)


def prompt(*texts: str) -> list[Message]:
    return question_prompt(texts, "Which house stands in town number 1?")


def variants(loaded: LoadedPrompt) -> list[str]:
    return [span.variant for span in loaded.prompt.spans]


def of_chunks(
    engine: FusionEngine, records: list[ChunkRecord], *numbers: int, before: str = ""
) -> list[str]:
    """What becomes of these chunks in a prompt, in order."""
    texts = [records[number].chunk.text for number in numbers]
    return variants(engine.load(prompt(before + texts[0], *texts[1:]), AS_IT_STANDS))


def test_the_first_is_isolated_and_the_others_are_fused(
    indexed: FusionEngine, records: list[ChunkRecord]
) -> None:
    assert of_chunks(indexed, records, 0, 4, 2) == ["isolated", "fused", "fused"]
    assert of_chunks(indexed, records, 5, 0) == ["isolated", "fused"]


def test_that_is_no_fault(indexed: FusionEngine, records: list[ChunkRecord]) -> None:
    answer = indexed.answer(prompt(*(r.chunk.text for r in records[:3])), AS_IT_STANDS)
    assert (answer.fused_chunks, answer.isolated_chunks) == (2, 1)
    assert answer.fallbacks == ()


def test_where_isolated_kv_is_lost_fused_kv_stands_in(
    engine: FusionEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.ingest([town(0), town(1)])
    records = all_records(engine.store.catalog)
    (file,) = engine.store.path.glob(f"kv/*/{records[0].isolated_key}.safetensors")
    file.unlink()
    texts = [record.chunk.text for record in records[:2]]
    answer = engine.answer(prompt(*texts), AS_IT_STANDS)
    assert (answer.fused_chunks, answer.missed_chunks) == (2, 0)
    (fallback,) = answer.fallbacks
    assert (fallback.chunk_id, fallback.used) == (records[0].chunk.id, "fused")
    assert "There is no KV record" in caplog.text
    # Isolated KV that is asked for isn't replaced by what carries other chunks' content.
    lost = engine.answer(prompt(*texts), replace(AS_IT_STANDS, kv="isolated"))
    assert (lost.fused_chunks, lost.isolated_chunks, lost.missed_chunks) == (0, 1, 1)


def test_as_it_is_stored_all_are_fused(indexed: FusionEngine, records: list[ChunkRecord]) -> None:
    texts = [record.chunk.text for record in records[:3]]
    assert variants(indexed.load(prompt(*texts), AS_STORED)) == ["fused"] * 3
    as_asked = replace(AS_IT_STANDS, kv="isolated")
    assert variants(indexed.load(prompt(*texts), as_asked)) == ["isolated"] * 3


@pytest.mark.parametrize(("times", "variant"), [(1, "isolated"), (40, "fused")])
def test_behind_unknown_text_it_is_fused_where_that_is_long(
    indexed: FusionEngine, records: list[ChunkRecord], times: int, variant: str
) -> None:
    """As long as what its fused KV has seen, or half of it."""
    seen = records[3].trace
    assert seen is not None
    length = len(indexed.encode(UNKNOWN * times))
    assert (length > seen.neighbour_tokens / 2) == (variant == "fused")
    before = UNKNOWN * times + "\n\n"
    assert of_chunks(indexed, records, 3, 1, before=before) == [variant, "fused"]


def test_said_again_later_it_is_fused_there(
    indexed: FusionEngine, records: list[ChunkRecord]
) -> None:
    assert of_chunks(indexed, records, 1, 1) == ["isolated", "fused"]
    assert of_chunks(indexed, records, 1, 4, 1) == ["isolated", "fused", "fused"]


def test_in_several_runs_it_is_isolated_in_each(
    indexed: FusionEngine, records: list[ChunkRecord]
) -> None:
    """A token in its middle is not the chunk's own; said again, as little of it is the first's."""
    texts = [records[number].chunk.text for number in (2, 5, 2)]
    whole = indexed.load(prompt(*texts), AS_STORED).prompt
    first, *others = whole.spans
    rest = replace(
        first,
        source_start=first.source_start + 11,
        start=first.start + 11,
        length=first.length - 11,
    )
    split = replace(whole, spans=(replace(first, length=10), rest, *others))
    with indexed.kv.lease() as lease:
        loaded = indexed.pipeline.loading.load(split, AS_IT_STANDS, lease, complete=True)
    assert variants(loaded) == ["isolated", "isolated", "fused", "fused"]
    assert [kv.key for kv in loaded.kvs[:2]] == [records[2].isolated_key] * 2


def test_behind_the_ingest_prefix_it_is_what_full_attention_computes(
    indexed: FusionEngine, records: list[ChunkRecord]
) -> None:
    texts = prompt(*(record.chunk.text for record in records[1:4]))
    model, loaded = indexed.model, indexed.load(texts, AS_IT_STANDS)
    executor = Executor(model)
    ids = loaded.prompt.token_ids
    true = executor.new_buffer(len(ids))
    executor.run([SequenceInput(ids, range(len(ids)), true)])

    def off(settings: AnswerSettings, span: int) -> float:
        found = indexed.load(texts, settings)
        at = slice(found.prompt.spans[span].start, found.prompt.spans[span].stop)
        placed = place_in_buffer(executor, found.prompt, found.kvs, len(ids))
        return float((placed.values[:, :, at] - true.values[:, :, at]).abs().max())

    first = slice(loaded.prompt.spans[0].start, loaded.prompt.spans[0].stop)
    placed = place_in_buffer(executor, loaded.prompt, loaded.kvs, len(ids))
    for found, expected in ((placed.keys, true.keys), (placed.values, true.values)):
        torch.testing.assert_close(found[:, :, first], expected[:, :, first], **TOLERANCE)
    assert off(AS_STORED, 0) > 100 * off(AS_IT_STANDS, 0)
    assert off(AS_STORED, 1) == off(AS_IT_STANDS, 1) > 0


def test_answers_come_closer_to_full_attentions(
    indexed: FusionEngine, records: list[ChunkRecord]
) -> None:
    nothing = make_selector("none", 0.0)

    def divergence(numbers: tuple[int, ...], settings: AnswerSettings) -> float:
        texts = prompt(*(records[number].chunk.text for number in numbers))
        loaded = indexed.load(texts, settings)
        full = answer_fully(indexed.executor, loaded.prompt.token_ids, 8)
        reused = ReusedPrompt(indexed.executor, loaded.prompt, loaded.kvs, full, 8)
        return float(reused.follow(nothing).divergence.mean())

    prompts = [(0, 4), (5, 1), (2, 3, 0), (3, 1), (4, 2), (1, 5, 3)]
    as_it_stands, as_stored = (
        sum(divergence(numbers, settings) for numbers in prompts)
        for settings in (AS_IT_STANDS, AS_STORED)
    )
    assert as_it_stands < as_stored
