"""The correction of a scope's fused KV, measured on prompts of its own chunks, without labels.

mixture     a chunk with those most similar to it, as a retriever would return them, in any order
true KV     that of the mixture, by a dense prefill
deviation   true less stored KV, by index in the chunk; its mean is the correction
validation  on mixtures that a mean leaves out: the correction is rejected if with it the model's
            answers diverge further from full attention's

A prompt's first chunk is served isolated, so it is not counted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from hashlib import sha256
from operator import add

import torch

from fusionrag_integrations.attention.rope import rotate
from fusionrag_integrations.documents.chunk_record import ChunkRecord
from fusionrag_integrations.execution.correction import CorrectedKV
from fusionrag_integrations.execution.executor import Executor
from fusionrag_integrations.execution.fidelity import FullAnswer, ReusedPrompt, answer_from
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.ingest.deviations import Deviations
from fusionrag_integrations.prompt import assemble, encode_rendered, question_as_prompt, render
from fusionrag_integrations.prompt.assembled import AssembledPrompt, TextMatch
from fusionrag_integrations.selectors.none import SelectNone
from fusionrag_integrations.store.corrections import FEWEST_CHUNKS, Correction
from fusionrag_integrations.store.kv.types import LayeredKV

logger = logging.getLogger(__name__)

CHUNKS = 8  # of a mixture; retrievers return about as many
MAX_TOKENS = 2_048  # of a mixture's chunks
FEWEST, MOST = 4, 16  # mixtures
SHARE = 0.03  # of an ingest's tokens that may be spent on mixtures, where that is more than FEWEST
ANSWER_TOKENS = 12
TOLERANCE = 1.1  # divergence with the correction over that without: more than chance

LoadKV = Callable[[ChunkRecord], LayeredKV]


def count_of(chunks: int) -> int:
    """How many mixtures to measure for a scope of `chunks` chunks; 0 where it has too few.

    Their share of the work counts each chunk twice, since ingest computes it isolated and fused.
    """
    if chunks < FEWEST_CHUNKS:
        return 0
    return max(FEWEST, min(MOST, int(SHARE * 2 * chunks / CHUNKS)))


def seeds(chunk_ids: Sequence[str], count: int) -> list[str]:
    """`count` chunks, spread over their ids, which are hashes: a reproducible sample."""
    return [chunk_ids[i * len(chunk_ids) // count] for i in range(count)]


def mixed(records: Sequence[ChunkRecord], context_window: int) -> list[ChunkRecord]:
    """As many of these as a mixture holds, in an order that is independent of their similarity."""
    chosen: list[ChunkRecord] = []
    room = min(MAX_TOKENS, context_window // 2)
    for record in records[:CHUNKS]:
        room -= len(record.encoded.token_ids)
        if room >= 0:
            chosen.append(record)
    return sorted(chosen, key=lambda record: sha256(record.chunk.id.encode()).digest())


def measure_correction(
    executor: Executor,
    mixtures: Sequence[Sequence[ChunkRecord]],
    load: LoadKV,
    progress: Callable[[int, int], None],
) -> tuple[Correction | None, tuple[str, ...]]:
    """The correction of fused KV, and the ids of the chunks that it is a mean over.

    None where it is rejected, and where fewer than two mixtures have a second chunk. load: gives a
    chunk's fused KV, keys unrotated.
    """
    measured = []
    for number, records in enumerate(mixtures):
        progress(number, len(mixtures))
        if len(records) > 1:
            measured.append(_Mixture.of(executor, records, load))
    if len(measured) < 2:
        return None, ()
    without = corrected = 0.0
    for mixture in measured:
        others = [other.deviations for other in measured if other is not mixture]
        without += mixture.divergence(executor, None)
        corrected += mixture.divergence(executor, reduce(add, others).mean())
    progress(len(mixtures), len(mixtures))
    logger.info("Divergence over mixtures: %.3f nats, corrected %.3f.", without, corrected)
    ids = tuple(dict.fromkeys(chunk_id for mixture in measured for chunk_id in mixture.counted))
    if corrected > without * TOLERANCE:
        return None, ids
    return reduce(add, [mixture.deviations for mixture in measured]).mean(), ids


@dataclass(frozen=True, slots=True, eq=False)
class _Mixture:
    """A prompt over its chunks' stored KV, with full attention's answer and KV's deviations.

    counted: ids of the chunks in `deviations`.
    """

    prompt: AssembledPrompt
    kvs: tuple[LayeredKV, ...]
    full: FullAnswer
    deviations: Deviations
    counted: tuple[str, ...]

    @classmethod
    def of(cls, executor: Executor, records: Sequence[ChunkRecord], load: LoadKV) -> _Mixture:
        model = executor.model
        prompt = assembled(model, records)
        kvs = tuple(load(span.record) for span in prompt.spans)
        true = executor.new_buffer(len(prompt) + ANSWER_TOKENS)
        (logits,) = executor.forward_rows(prompt.token_ids, range(len(prompt)), true)
        first = prompt.spans[0].record
        deviations: list[Deviations] = []
        counted: dict[str, None] = {}
        for span, kv in zip(prompt.spans, kvs, strict=True):
            if span.record == first:
                continue
            counted[span.record.chunk.id] = None
            keys, values = kv.tensors(slice(None), model.device)
            source = slice(span.source_start, span.source_start + span.length)
            target = slice(span.start, span.stop)
            unrotate = model.rotation(range(span.start, span.stop)).inverse()
            deviations.append(
                Deviations.of(
                    (keys[:, :, source], values[:, :, source]),
                    (rotate(true.keys[:, :, target], unrotate), true.values[:, :, target]),
                    torch.arange(source.start, source.stop),
                )
            )
        step = executor.appender(true, len(prompt))
        full = answer_from(executor, logits, step, ANSWER_TOKENS)
        return cls(prompt, kvs, full, reduce(add, deviations), tuple(counted))

    def divergence(self, executor: Executor, correction: Correction | None) -> float:
        """From full attention's distributions over its answer, in nats; nothing is recomputed."""
        first = self.prompt.spans[0].record
        kvs = [
            kv if correction is None or span.record == first else CorrectedKV(kv, correction)
            for span, kv in zip(self.prompt.spans, self.kvs, strict=True)
        ]
        reused = ReusedPrompt(executor, self.prompt, kvs, self.full, ANSWER_TOKENS)
        return float(reused.follow(SelectNone()).divergence.sum())


def assembled(model: CausalModel, records: Sequence[ChunkRecord]) -> AssembledPrompt:
    """A question about one of the chunks over all of them, as this package's own prompt."""
    texts = [record.chunk.text for record in records]
    asked = records[len(records) // 2].chunk
    about = asked.title or " ".join(asked.text.split()[:8])
    question = f'What does the text say about "{about}"?'
    prompt = question_as_prompt(model.tokenizer, texts, question)
    rendered = render(model.tokenizer, prompt, on_one_day=True)
    matches: list[TextMatch] = []
    at = 0
    for record in records:
        at = rendered.text.index(record.chunk.text, at)
        stop = at + len(record.chunk.text)
        matches.append(TextMatch(record, at, stop))
        at = stop
    if rendered.plain:
        rendered = replace(rendered, quoted=tuple((match.start, match.stop) for match in matches))
    encoded = encode_rendered(model.tokenizer, rendered)
    return assemble(encoded, matches, [record.handle for record in records])
