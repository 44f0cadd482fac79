"""How close a strategy comes to full attention's answer to a question.

Full attention's answer is taken apart once: a token that only repeats the question is easy under
any KV and is left out of the divergence, and where the answer holds an accepted one, its tokens are
looked at by themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fusionrag_integrations.bench.comparison import Question
from fusionrag_integrations.bench.metrics import find_answer
from fusionrag_integrations.bench.shared_pass import Answered
from fusionrag_integrations.check.echo import counted_tokens, overlap, token_bounds
from fusionrag_integrations.serving.text_stream import text_pieces


@dataclass(frozen=True, slots=True)
class Closeness:
    """What a strategy makes of full attention's answer, of which it is shown every token.

    equal: whether it answers the same by itself, token for token and to the same end. tokens: of
    the answer, its end among them; agreed: how many of them the strategy finds likeliest, too.
    counted: tokens that don't only repeat the question; kl: the divergence from full attention's
    distributions, in nats, summed over them. answer_tokens, kl_answer: the same for the tokens of
    the accepted answer; 0 where there is none.
    """

    equal: bool
    tokens: int
    agreed: int
    counted: int
    kl: float
    answer_tokens: int
    kl_answer: float


class FullText:
    """Full attention's answer as text, and which of its tokens count."""

    def __init__(self, tokenizer: Any, token_ids: Sequence[int], question: Question) -> None:
        self._token_ids = tuple(token_ids)
        pieces = text_pieces(tokenizer, token_ids)
        self._counted = counted_tokens(pieces, question.question)
        found = find_answer("".join(pieces), question.answers)
        bounds = enumerate(token_bounds(pieces))
        self._accepted = [i for i, own in bounds if found and overlap(own, found)]

    def closeness(self, answer: Answered) -> Closeness:
        """How close an answer on the same question comes to it."""
        likeliest = zip(answer.greedy, self._token_ids, strict=True)
        return Closeness(
            equal=answer.token_ids == self._token_ids,
            tokens=len(self._token_ids),
            agreed=sum(own == token for own, token in likeliest),
            counted=len(self._counted),
            kl=_sum_at(answer.divergence, self._counted),
            answer_tokens=len(self._accepted),
            kl_answer=_sum_at(answer.divergence, self._accepted),
        )


def _sum_at(values: Sequence[float], places: Iterable[int]) -> float:
    return float(sum(values[place] for place in places))
