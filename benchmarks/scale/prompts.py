"""Prompts as a service gets them: few topics are popular, and questions about one share chunks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fusionrag_integrations.bench.throughput.workload import zipf
from fusionrag_integrations.errors import InvalidInputError

EXPONENT = 0.8
"""Of Zipf's law for topics: that of rank r is asked about in proportion to r^-0.8."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """chunks: tokens by chunk id, in the prompt's order. own_tokens: of all other text.

    output_tokens: of the answer.
    """

    chunks: Mapping[str, int]
    own_tokens: int
    output_tokens: int


class Prompts(Protocol):
    """Where prompts come from."""

    @property
    def tokens(self) -> int:
        """Of all chunks that a prompt may have."""

    def drawn(self, count: int, seed: int) -> Iterator[Prompt]:
        """As many prompts; the same for the same seed."""


@dataclass(frozen=True, slots=True)
class InventedTopics:
    """Questions about topics with as many chunks each.

    retrieved: chunks of a prompt. Each is of the question's topic with a chance of `own_share`,
    else of any; within a topic chunks are popular by Zipf's law.
    """

    topics: int = 200
    chunks_a_topic: int = 20
    retrieved: int = 5
    own_share: float = 0.7
    chunk_tokens: int = 256
    own_tokens: int = 64
    output_tokens: int = 64

    def __post_init__(self) -> None:
        if not 1 <= self.retrieved <= self.chunks_a_topic or not 0.0 <= self.own_share <= 1.0:
            raise InvalidInputError(
                f"There are no such topics: {self}. A topic needs at least as many chunks as a "
                "prompt, and own_share lies in [0, 1]."
            )

    @property
    def tokens(self) -> int:
        return self.topics * self.chunks_a_topic * self.chunk_tokens

    def drawn(self, count: int, seed: int) -> Iterator[Prompt]:
        draw = np.random.default_rng([seed, 1])
        within = zipf(self.chunks_a_topic, EXPONENT)
        for topic in draw.choice(self.topics, count, p=zipf(self.topics, EXPONENT)):
            own = int(draw.binomial(self.retrieved, self.own_share))
            ids = [f"{topic}/{n}" for n in draw.choice(self.chunks_a_topic, own, False, within)]
            while len(ids) < self.retrieved:
                number = draw.choice(self.chunks_a_topic, p=within)
                other = f"{draw.integers(self.topics)}/{number}"
                if other not in ids:
                    ids.append(other)
            draw.shuffle(ids)
            yield Prompt(dict.fromkeys(ids, self.chunk_tokens), self.own_tokens, self.output_tokens)


@dataclass(frozen=True, slots=True)
class RealPrompts:
    """Prompts by topic. Which topics are popular is drawn; a topic's prompts are equally so."""

    by_topic: Sequence[Sequence[Prompt]]

    @property
    def tokens(self) -> int:
        every = [prompt.chunks for topic in self.by_topic for prompt in topic]
        return sum({chunk: n for chunks in every for chunk, n in chunks.items()}.values())

    def drawn(self, count: int, seed: int) -> Iterator[Prompt]:
        draw = np.random.default_rng([seed, 1])
        ranked = draw.permutation(len(self.by_topic))
        for rank in draw.choice(len(ranked), count, p=zipf(len(ranked), EXPONENT)):
            topic = self.by_topic[ranked[rank]]
            yield topic[int(draw.integers(len(topic)))]
