"""How close what a model makes of reused KV comes to what it answers under full attention.

Full attention answers greedily, once. Each way of reuse is then shown that same answer, token by
token, in the pass that recomputes its tokens: what it finds likely at each place can be compared as
a distribution, and where it would have said something else its own answer begins to differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from fusionrag_integrations.execution.decoding import TokenDecoder
from fusionrag_integrations.execution.executor import Executor
from fusionrag_integrations.execution.placement import place_in_buffer
from fusionrag_integrations.execution.recompute import PlacedPrompt, PrefillOutput
from fusionrag_integrations.execution.steps import StepFunction
from fusionrag_integrations.prompt.assembled import AssembledPrompt
from fusionrag_integrations.selectors.probe import LayerView
from fusionrag_integrations.selectors.selection import Selector, TokenSelection
from fusionrag_integrations.store.kv.types import LayeredKV


@dataclass(frozen=True, slots=True, eq=False)
class FullAnswer:
    """What the model answers greedily under full attention, by its logits as they are.

    token_ids: [A], the token that ended it among them. log_probs: float32 [A, V], of what might
    have stood at each place.
    """

    token_ids: tuple[int, ...]
    log_probs: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Followed:
    """What a way of reuse makes of full attention's answer.

    log_probs: of what might have stood at each place, float32 [A, V]. divergence: Kullback-Leibler,
    of its distribution from full attention's at each token, in nats, float32 [A]. greedy: the token
    that it finds likeliest at each place, [A]. log_likelihood: of the answer's tokens, float32 [A].
    selection: the tokens that were recomputed. token_layers: the work before the first token, as in
    `Usage`. prefilled: behind the prompt and that answer.
    """

    log_probs: torch.Tensor
    divergence: torch.Tensor
    greedy: tuple[int, ...]
    log_likelihood: torch.Tensor
    selection: TokenSelection
    token_layers: int
    prefilled: PrefillOutput


def answer_fully(executor: Executor, token_ids: Sequence[int], max_tokens: int) -> FullAnswer:
    """Answer by the model's own dense prefill, to the end or to `max_tokens`."""
    return answer_from(executor, *executor.prefill_dense(token_ids), max_tokens)


def answer_from(
    executor: Executor, logits: torch.Tensor, step: StepFunction, max_tokens: int
) -> FullAnswer:
    """The same, of a prompt that is computed: its last logits [V], and what appends a token."""
    seen = [logits]

    def watched(token_id: int) -> torch.Tensor:
        seen.append(step(token_id))
        return seen[-1]

    tokens = TokenDecoder(logits, watched, executor.model.likeliest(max_tokens))
    ids = tuple(token.token_id for token in tokens)
    return FullAnswer(ids, torch.stack(seen).float().log_softmax(-1))


class ReusedPrompt:
    """One prompt over its stored KV, placed once and probed once, recomputed in several ways."""

    def __init__(
        self,
        executor: Executor,
        prompt: AssembledPrompt,
        kvs: Sequence[LayeredKV],
        full: FullAnswer,
        max_tokens: int,
        *,
        corrected: bool = False,
    ) -> None:
        """kvs: one for each of the prompt's spans, in order. full: the answer that is followed.

        max_tokens: the longest answer of its own. corrected: whether what recomputed tokens are
        off by is carried over to the others.
        """
        self._executor = executor
        self._corrected = corrected
        self._prompt = prompt
        self._full = full
        self._max_tokens = max_tokens
        self._placed = place_in_buffer(executor, prompt, kvs, len(prompt) + max_tokens)
        self._seen: dict[tuple[int, ...] | None, _Seen] = {}  # by the tokens that were watched

    def follow(self, selector: Selector) -> Followed:
        """Recompute what the selector chooses, and read the answer behind it."""
        placed = PlacedPrompt(
            self._executor, self._prompt, self._placed.copy(), corrected=self._corrected
        )
        probe = _SharedProbe(placed, self._look)
        selection = selector.select(self._prompt, probe)
        prefilled = placed.recompute(selection, self._full.token_ids[:-1])
        logits = prefilled.logits.float()
        log_probs, full = logits.log_softmax(-1), self._full.log_probs
        ids = torch.tensor(self._full.token_ids, device=log_probs.device)
        divergence = (full.exp() * (full - log_probs)).sum(-1)
        return Followed(
            log_probs=log_probs,
            divergence=divergence.clamp(min=0.0).cpu(),  # rounding can leave it just below
            greedy=tuple(logits.argmax(-1).tolist()),
            log_likelihood=log_probs.gather(1, ids[:, None])[:, 0].cpu(),
            selection=selection,
            token_layers=placed.token_layers + probe.token_layers,
            prefilled=prefilled,
        )

    def own_answer(self, followed: Followed) -> tuple[int, ...]:
        """What this way of reuse answers by itself, greedily: the same up to where it differs."""
        ids = self._full.token_ids
        same = next((i for i, t in enumerate(followed.greedy) if t != ids[i]), len(ids))
        if same == len(ids):
            return ids
        step = self._executor.appender(followed.prefilled.kv, len(self._prompt) + same)
        rest = TokenDecoder(
            followed.prefilled.logits[same],
            step,
            self._executor.model.likeliest(self._max_tokens - same),
        )
        return (*ids[:same], *(token.token_id for token in rest))

    def _look(self, watched: tuple[int, ...] | None) -> _Seen:
        """What every layer shows, over the KV as it was placed."""
        if watched not in self._seen:
            layers = range(self._executor.model.num_layers)
            placed = PlacedPrompt(self._executor, self._prompt, self._placed.copy())
            if watched is None:
                views, off = placed.suffix(layers), torch.empty(len(layers), 0)
            else:
                views, off = placed.watched_suffix(layers, watched)
            self._seen[watched] = _Seen(views, off, placed)
        return self._seen[watched]


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """All layers' views, how far the watched tokens are off in each, and where that was seen."""

    views: list[LayerView]
    off: torch.Tensor
    placed: PlacedPrompt


class _SharedProbe:
    """A probe whose layers were seen before; it counts what looking would have cost by itself."""

    def __init__(
        self, placed: PlacedPrompt, look: Callable[[tuple[int, ...] | None], _Seen]
    ) -> None:
        """look: at all layers, with these tokens run along, or at the suffix alone."""
        self.num_layers = placed.num_layers
        self.global_layers = placed.global_layers
        self.token_layers = 0
        self._placed = placed
        self._look = look

    def suffix(self, layers: Sequence[int]) -> list[LayerView]:
        return self._views(self._look(None), layers)

    def watched_suffix(
        self, layers: Sequence[int], watched: Sequence[int]
    ) -> tuple[list[LayerView], torch.Tensor]:
        seen = self._look(tuple(watched))
        return self._views(seen, layers), seen.off[: max(layers) + 1]

    def early_deviation(self) -> torch.Tensor:
        return self._placed.early_deviation()

    def _views(self, seen: _Seen, layers: Sequence[int]) -> list[LayerView]:
        depth = max(layers) + 1
        self.token_layers += seen.placed.token_layers // self.num_layers * depth
        if depth == self.num_layers:
            self._placed.copy_prefix(seen.placed)
        return [seen.views[layer] for layer in layers]
