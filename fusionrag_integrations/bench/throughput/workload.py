"""What is asked, and when: prompts over chunks of which few are popular, and random arrivals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fusionrag_integrations.bench.throughput.plan import Plan
from fusionrag_integrations.documents.chunk_record import ChunkRecord
from fusionrag_integrations.engine import FusionEngine
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.prompt import encode, question_as_prompt
from fusionrag_integrations.prompt.messages import Prompt

QUESTION = "Which place or person is named first, and what is said about it?"


@dataclass(frozen=True, slots=True)
class Asked:
    """One request. token_ids: the prompt's, for systems that aren't given text."""

    prompt: Prompt
    token_ids: tuple[int, ...]


class Workload:
    """Prompts over the chunks of an engine's store, the same for all systems."""

    def __init__(self, engine: FusionEngine, plan: Plan) -> None:
        """Raises `InvalidInputError` for a store without chunks, and for prompts that don't fit
        the model's context together with their answers.
        """
        ids = engine.store.catalog.chunks.ids()
        if not ids:
            raise InvalidInputError(
                f"The store at {engine.store.path} has no chunks; ingest documents first."
            )
        if plan.prompt_tokens + plan.output_tokens > engine.context_window:
            raise InvalidInputError(
                f"Prompts of {plan.prompt_tokens} tokens and answers of {plan.output_tokens} are "
                f"too long: {engine.model_name} holds {engine.context_window} together."
            )
        self._tokenizer = engine.model.tokenizer
        self._plan = plan
        # Which chunks are popular has nothing to do with where they stand.
        order = np.random.default_rng(plan.seed).permutation(len(ids))[: plan.chunks]
        records = engine.store.catalog.chunks.records([ids[number] for number in order])
        self.records: tuple[ChunkRecord, ...] = tuple(records.values())
        """The chunks, the most popular first."""
        self._popularity = zipf(len(self.records), plan.exponent)

    def requests(self, count: int, *stream: int) -> list[Asked]:
        """As many requests; the same for the same `stream` of numbers.

        Raises `InvalidInputError` where a prompt has no room for its first chunk.
        """
        draw = np.random.default_rng([self._plan.seed, *stream])
        size = len(self.records)
        return [
            self._asked([self.records[i] for i in draw.choice(size, size, False, self._popularity)])
            for _ in range(count)
        ]

    def _asked(self, records: Sequence[ChunkRecord]) -> Asked:
        """A request over the first of these chunks, as many as fit."""
        room, taken = self._plan.prompt_tokens, 0
        for record in records:
            room -= len(record.encoded.token_ids)
            if room < 0:
                break
            taken += 1
        for count in range(taken, 0, -1):  # what stands around chunks takes tokens, too
            texts = [record.chunk.text for record in records[:count]]
            prompt = question_as_prompt(self._tokenizer, texts, QUESTION)
            token_ids = encode(self._tokenizer, prompt).token_ids
            if len(token_ids) <= self._plan.prompt_tokens:
                return Asked(prompt, tuple(token_ids))
        raise InvalidInputError(
            f"A prompt of {self._plan.prompt_tokens} tokens has no room for the chunk "
            f"{records[0].chunk.id!r}, which has {len(records[0].encoded.token_ids)}. Give longer "
            "prompts."
        )


def zipf(count: int, exponent: float) -> npt.NDArray[np.float64]:
    """Shares of draws by rank: rank r gets a share in proportion to r^-exponent (Zipf's law)."""
    weights = np.arange(1, count + 1, dtype=np.float64) ** -exponent
    shares: npt.NDArray[np.float64] = weights / weights.sum()
    return shares


def poisson(count: int, a_second: float, *stream: int) -> list[float]:
    """When requests arrive in a Poisson process, in seconds, the first one after a gap, too.

    The same for the same `stream` of numbers.
    """
    gaps = np.random.default_rng([*stream]).exponential(1.0 / a_second, count)
    return [float(at) for at in np.cumsum(gaps)]
