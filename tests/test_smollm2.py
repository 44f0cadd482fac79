"""A real pretrained model: SmolLM2-135M-Instruct, whose 30 layers make something of real text.

The gates of test_gates.py hold for it as for random ones, beside transformers' own dense model.
"""

from __future__ import annotations

import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from fusionrag_integrations import AnswerSettings, Document, FusionEngine
from fusionrag_integrations.attention.rope import rotate
from fusionrag_integrations.demo import smollm2
from fusionrag_integrations.documents.chunk_record import ChunkRecord, EncodedChunk
from fusionrag_integrations.documents.types import Chunk
from fusionrag_integrations.execution.chunk_kv import (
    Fusion,
    fuse_chunks,
    prefill_chunks,
    prefill_prefix,
)
from fusionrag_integrations.execution.executor import Executor
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.execution.placement import place_in_buffer
from fusionrag_integrations.execution.recompute import PlacedPrompt
from fusionrag_integrations.prompt.assembled import AssembledPrompt, Span
from fusionrag_integrations.selectors.selection import TokenSelection
from fusionrag_integrations.store.catalog import Catalog
from fusionrag_integrations.store.kv.types import ChunkKV
from fusionrag_integrations.store.layout import CATALOG_FILE
from tests.reference import Reference

pytestmark = [pytest.mark.smollm2, pytest.mark.slow]

CURIE = (
    "Marie Curie was born in Warsaw in 1867. She studied physics and mathematics in Paris, where "
    "she met Pierre Curie, whom she married in 1895. Together they found two new elements, "
    "polonium and radium.",
    "She was the first woman to win a Nobel Prize, and is still the only person to have won it in "
    "two sciences: in physics in 1903, and in chemistry in 1911. During the First World War she "
    "drove cars with X-ray machines to the front.",
)
BRIDGE = (
    "The Forth Bridge crosses the Firth of Forth in Scotland, west of Edinburgh. It was opened in "
    "1890 and carries trains to this day. More than fifty thousand tons of steel were used for it.",
    "Its engineers were John Fowler and Benjamin Baker. Painting it was said never to end: when "
    "the painters reached one end, they had to begin again at the other.",
)
PREFIX, QUESTION = "Read the text.\n\n", "\n\nWhere was Marie Curie born?"
# Of the largest number there. What is seen is 1e-5; at position 4000, where float32 has angles to
# 2e-4, 3e-5.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def reference(pretrained: CausalModel) -> Reference:
    """transformers' own model on the same weights."""
    shared = {id(parameter): parameter for parameter in pretrained.hf.parameters()}
    return Reference(deepcopy(pretrained.hf, shared))


def ids(model: CausalModel, text: str) -> tuple[int, ...]:
    return tuple(model.tokenizer(text, add_special_tokens=False).input_ids)


def isolated(model: CausalModel, text: str, key: str = "") -> ChunkKV:
    executor = Executor(model)
    prefix = prefill_prefix(executor, ids(model, PREFIX))
    return prefill_chunks(executor, prefix, {key: ids(model, text)})[0]


def prompt_of(model: CausalModel, first: str, *texts: str) -> AssembledPrompt:
    """`first`, the texts as chunks, and the question."""
    tokens, spans = list(ids(model, first)), []
    for text in texts:
        own = ids(model, text)
        chunk = Chunk(id=text[:9], document_id="d", index=0, text=text)
        encoded = EncodedChunk(chunk, own, tuple((i, i + 1) for i in range(len(own))))
        spans.append(Span(ChunkRecord(encoded, "00"), "isolated", 0, len(tokens), len(own)))
        tokens += own
    end = len(tokens)
    tokens += ids(model, QUESTION)
    return AssembledPrompt(tuple(tokens), tuple(spans), (end, len(tokens)))


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    largest = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0.0, atol=TOLERANCE * largest)


def assert_dense(
    model: CausalModel,
    reference: Reference,
    prompt: AssembledPrompt,
    kvs: list[ChunkKV],
    selected: tuple[int, ...],
) -> None:
    """With these tokens recomputed, all is as the model itself computes it."""
    executor = Executor(model)
    buffer = place_in_buffer(executor, prompt, kvs, len(prompt))
    logits = PlacedPrompt(executor, prompt, buffer).recompute(TokenSelection(selected)).logits[0]
    expected, (keys, values) = reference.dense(prompt.token_ids)
    assert_close(logits, expected[-1])
    assert_close(buffer.keys, keys)
    assert_close(buffer.values, values)


def test_recompute_everything_is_dense_prefill(
    pretrained: CausalModel, reference: Reference
) -> None:
    texts = (*CURIE, BRIDGE[1])
    prompt = prompt_of(pretrained, "Context:\n", *texts)
    kvs = [isolated(pretrained, text) for text in texts]
    assert_dense(pretrained, reference, prompt, kvs, prompt.chunk_positions)


def test_a_chunk_behind_its_own_prefix_is_exact(
    pretrained: CausalModel, reference: Reference
) -> None:
    prompt = prompt_of(pretrained, PREFIX, CURIE[0])
    assert_dense(pretrained, reference, prompt, [isolated(pretrained, CURIE[0])], ())


def test_a_fused_chunk_behind_its_own_neighbour_is_exact(
    pretrained: CausalModel, reference: Reference
) -> None:
    first, second = isolated(pretrained, CURIE[0], "aa"), isolated(pretrained, CURIE[1])
    prefix = prefill_prefix(Executor(pretrained), ids(pretrained, PREFIX))
    ((fused, _),) = fuse_chunks(Executor(pretrained), prefix, [Fusion("bb", second, (first,))])
    prompt = prompt_of(pretrained, PREFIX, *CURIE)
    assert_dense(pretrained, reference, prompt, [first, fused], ())
    # So it is the neighbour that makes the difference.
    with pytest.raises(AssertionError):
        assert_dense(pretrained, reference, prompt, [first, second], ())


@pytest.mark.parametrize("start", [60, 4000])
def test_moved_keys_are_what_the_model_makes_there(
    pretrained: CausalModel, reference: Reference, start: int
) -> None:
    tokens = ids(pretrained, CURIE[0])
    kv = isolated(pretrained, CURIE[0])
    keys, values = reference.isolated(ids(pretrained, PREFIX), tokens, start)
    there = pretrained.rotation(range(start, start + len(tokens)))
    assert_close(rotate(kv.keys, there), keys)
    assert_close(kv.values, values)
    assert_close(rotate(rotate(kv.keys, there), there.inverse()), kv.keys)


def test_it_answers_from_fused_kv(pretrained: CausalModel, tmp_path: Path) -> None:
    engine = FusionEngine.open(pretrained, tmp_path / "store", chunk_tokens=80)
    engine.ingest(
        [
            Document(id="curie", text="\n\n".join(CURIE)),
            Document(id="bridge", text="\n\n".join(BRIDGE)),
        ]
    )
    for question, expected in (
        ("In which city was Marie Curie born?", ["Warsaw"]),
        ("Which two elements did Marie Curie find?", ["polonium", "radium"]),
    ):
        found = "\n\n".join(hit.chunk.text for hit in engine.store.search(question, 3))
        asked = f"{found}\n\nAnswer from the text above in a few words: {question}"
        prompt = [{"role": "user", "content": asked}]
        answer = engine.answer(prompt, AnswerSettings(ratio=0.15, max_tokens=16))
        assert [word for word in expected if word not in answer.text] == []
        assert answer.fused_chunks >= 2  # a prompt's first chunk may do without
        assert answer.fused_chunks + answer.isolated_chunks == 3
        assert answer.usage.recompute_ratio <= 0.16
        assert answer.usage.reused_tokens > 100


def test_the_command_knows_it_by_name(pretrained: CausalModel, tmp_path: Path) -> None:
    """In a process of its own: what is on the screen there is this package's alone."""
    (tmp_path / "curie.txt").write_text(CURIE[0])
    command = "from fusionrag_integrations.cli import main; main()"
    arguments = ["index", "curie.txt", "--store", "store", "--model", "smollm2"]
    done = subprocess.run(
        [sys.executable, "-c", command, *arguments],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "1 documents added" in done.stdout
    assert "it/s" not in done.stderr
    with Catalog.open(tmp_path / "store" / CATALOG_FILE) as catalog:
        assert catalog.info.model_source == str(smollm2())
    engine = FusionEngine.open(pretrained, tmp_path / "store")
    assert engine.answer(CURIE[0], AnswerSettings(max_tokens=1)).usage.reused_tokens > 40
