"""What a scope's fused KV is off by, measured on prompts of its own chunks; no labels are needed.

mixture    a chunk with those most similar to it, as a retriever would return them, in any order
true KV    of the mixture, by a dense prefill
off        true less stored, by index in the chunk: its mean is the correction
kept       unless, over mixtures that it is no mean over, the distributions of the model's answers
           go away from full attention's with it

The chunk that stands first in a prompt is served isolated, so it is not counted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from hashlib import sha256
from operator import add

import torch

from fusionrag_integrations.correction import FEWEST_CHUNKS, CorrectedKV, Correction, Deviations
from fusionrag_integrations.fidelity import FullAnswer, ReusedPrompt, answer_from
from fusionrag_integrations.model import CausalModel
from fusionrag_integrations.prompt import assemble, encode_worded, word, worded_question
from fusionrag_integrations.rope import rotate
from fusionrag_integrations.selectors.none import SelectNone
from fusionrag_integrations.types import (
    AssembledPrompt,
    ChunkRecord,
    LayeredKV,
    TextMatch,
)

logger = logging.getLogger(__name__)

CHUNKS = 8  # of a mixture; retrievers return about as many
MAX_TOKENS = 2_048  # of a mixture's chunks
FEWEST, MOST = 4, 16  # mixtures
SHARE = 0.03  # of an ingest's tokens that may be spent on mixtures, where that is more than FEWEST
ANSWER_TOKENS = 12
TOLERANCE = 1.1  # divergence with it over that without: less says nothing, by so few answers

LoadKV = Callable[[ChunkRecord], LayeredKV]


def count_of(chunks: int) -> int:
    """How many mixtures a scope of so many chunks is worth; 0 where it has too few.

    An ingest computes each chunk twice, isolated and fused.
    """
    if chunks < FEWEST_CHUNKS:
        return 0
    return max(FEWEST, min(MOST, int(SHARE * 2 * chunks / CHUNKS)))


def seeds(chunk_ids: Sequence[str], count: int) -> list[str]:
    """`count` chunks, spread over their ids, which are hashes: a sample, the same each time."""
    return [chunk_ids[i * len(chunk_ids) // count] for i in range(count)]


def mixed(records: Sequence[ChunkRecord], context_window: int) -> list[ChunkRecord]:
    """As many of these as a mixture holds, in an order that says nothing of how near they are."""
    kept: list[ChunkRecord] = []
    room = min(MAX_TOKENS, context_window // 2)
    for record in records[:CHUNKS]:
        room -= len(record.encoded.token_ids)
        if room >= 0:
            kept.append(record)
    return sorted(kept, key=lambda record: sha256(record.chunk.id.encode()).digest())


def measure_correction(
    model: CausalModel,
    mixtures: Sequence[Sequence[ChunkRecord]],
    load: LoadKV,
    progress: Callable[[int, int], None],
) -> tuple[Correction | None, tuple[str, ...]]:
    """The correction of fused KV, and the ids of the chunks that it is a mean over.

    None where it leads answers away from full attention's, and where fewer than two mixtures have a
    chunk behind the first. load: gives a chunk's fused KV, keys in the canonical frame.
    """
    seen = []
    for number, records in enumerate(mixtures):
        progress(number, len(mixtures))
        if len(records) > 1:
            seen.append(_Mixture.of(model, records, load))
    if len(seen) < 2:
        return None, ()
    without = with_it = 0.0
    for mixture in seen:
        others = [other.deviations for other in seen if other is not mixture]
        without += mixture.divergence(model, None)
        with_it += mixture.divergence(model, reduce(add, others).mean())
    progress(len(mixtures), len(mixtures))
    logger.info("Divergence over mixtures: %.3f nats, corrected %.3f.", without, with_it)
    ids = tuple(dict.fromkeys(chunk_id for mixture in seen for chunk_id in mixture.counted))
    if with_it > without * TOLERANCE:
        return None, ids
    return reduce(add, [mixture.deviations for mixture in seen]).mean(), ids


@dataclass(frozen=True, slots=True, eq=False)
class _Mixture:
    """A prompt over its chunks' stored KV, with full attention's answer, and what is off.

    counted: ids of the chunks in `deviations`.
    """

    prompt: AssembledPrompt
    kvs: tuple[LayeredKV, ...]
    full: FullAnswer
    deviations: Deviations
    counted: tuple[str, ...]

    @classmethod
    def of(cls, model: CausalModel, records: Sequence[ChunkRecord], load: LoadKV) -> _Mixture:
        prompt = assembled(model, records)
        kvs = tuple(load(span.record) for span in prompt.spans)
        true = model.new_buffer(len(prompt) + ANSWER_TOKENS)
        (logits,) = model.forward_rows(prompt.token_ids, range(len(prompt)), true)
        first = prompt.spans[0].record
        off: list[Deviations] = []
        counted: dict[str, None] = {}
        for span, kv in zip(prompt.spans, kvs, strict=True):
            if span.record == first:
                continue
            counted[span.record.chunk.id] = None
            keys, values = kv.tensors(slice(None), model.device)
            own = slice(span.source_start, span.source_start + span.length)
            there = slice(span.start, span.stop)
            back = model.rotation(range(span.start, span.stop)).inverse()
            off.append(
                Deviations.of(
                    (keys[:, :, own], values[:, :, own]),
                    (rotate(true.keys[:, :, there], back), true.values[:, :, there]),
                    torch.arange(own.start, own.stop),
                )
            )
        full = answer_from(model, logits, model.appender(true, len(prompt)), ANSWER_TOKENS)
        return cls(prompt, kvs, full, reduce(add, off), tuple(counted))

    def divergence(self, model: CausalModel, correction: Correction | None) -> float:
        """Of the answer's distributions from full attention's, in nats, with nothing recomputed."""
        first = self.prompt.spans[0].record
        kvs = [
            kv if correction is None or span.record == first else CorrectedKV(kv, correction)
            for span, kv in zip(self.prompt.spans, self.kvs, strict=True)
        ]
        reused = ReusedPrompt(model, self.prompt, kvs, self.full, ANSWER_TOKENS)
        return float(reused.follow(SelectNone()).divergence.sum())


def assembled(model: CausalModel, records: Sequence[ChunkRecord]) -> AssembledPrompt:
    """A question about one of the chunks over all of them, in the words of this package."""
    texts = [record.chunk.text for record in records]
    asked = records[len(records) // 2].chunk
    about = asked.title or " ".join(asked.text.split()[:8])
    question = f'What does the text say about "{about}"?'
    prompt = worded_question(model.tokenizer, texts, question)
    worded = word(model.tokenizer, prompt, on_one_day=True)
    matches: list[TextMatch] = []
    at = 0
    for record in records:
        at = worded.text.index(record.chunk.text, at)
        stop = at + len(record.chunk.text)
        matches.append(TextMatch(record, at, stop))
        at = stop
    if worded.plain:
        worded = replace(worded, quoted=tuple((match.start, match.stop) for match in matches))
    encoded = encode_worded(model.tokenizer, worded)
    return assemble(encoded, matches, [record.handle for record in records])
