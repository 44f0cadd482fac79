"""Full attention in static batches: all requests that wait are answered together, to their end.

Two ways to prefill a batch: together, padded on the left; or one after the other without padding,
for which attention is quicker, and put together then. Decode is a step for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Thread
from time import sleep
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import StaticCache

from fusionrag_integrations.bench.throughput.load import Ask, TokenTimes
from fusionrag_integrations.bench.throughput.workload import Asked

_GATHER_S = 0.005  # clients that got their answers together send their next requests meanwhile


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    asked: Asked
    times: TokenTimes
    answer: Future[list[int]] = field(default_factory=Future)


@dataclass(frozen=True, slots=True)
class Batches:
    """model: transformers' own. at_once: requests of a batch at most. together: whether they are
    prefilled together; not for models with windowed layers otherwise.
    """

    model: Any
    tokens: int
    at_once: int
    together: bool

    @contextmanager
    def serve(self) -> Iterator[Ask]:
        """Answers batches in a thread of its own."""
        queue: SimpleQueue[_Waiting | None] = SimpleQueue()
        worker = Thread(target=self._work, args=(queue,), name="fusionrag-batches")
        worker.start()

        def ask(asked: Asked, times: TokenTimes) -> Sequence[int]:
            waiting = _Waiting(asked, times)
            queue.put(waiting)
            return waiting.answer.result()

        try:
            yield ask
        finally:
            queue.put(None)
            worker.join()

    def _work(self, queue: SimpleQueue[_Waiting | None]) -> None:
        while (first := queue.get()) is not None:
            sleep(_GATHER_S)
            batch = [first]
            while len(batch) < self.at_once:
                try:
                    waiting = queue.get_nowait()
                except Empty:
                    break
                if waiting is None:  # nobody asks any more
                    queue.put(None)
                    break
                batch.append(waiting)
            try:
                answers = self._answer(batch)
            except Exception as error:  # noqa: BLE001 whatever it is, those who wait have to know
                for waiting in batch:
                    waiting.answer.set_exception(error)
            else:
                for waiting, answer in zip(batch, answers, strict=True):
                    waiting.answer.set_result(answer)

    @torch.inference_mode()
    def _answer(self, batch: Sequence[_Waiting]) -> list[list[int]]:
        """The tokens of each answer."""
        longest = max(len(waiting.asked.token_ids) for waiting in batch)
        device = self.model.device
        mask = torch.zeros(len(batch), longest + self.tokens, dtype=torch.int64, device=device)
        for row, waiting in enumerate(batch):
            mask[row, longest - len(waiting.asked.token_ids) :] = 1
        lengths = mask[:, :longest].sum(-1, keepdim=True)
        cache = StaticCache(config=self.model.config, max_cache_len=longest + self.tokens)
        prefill = self._prefill_together if self.together else self._prefill_alone
        answers = [prefill(batch, mask[:, :longest], cache)]
        for count in range(self.tokens - 1):
            token = self._forward(
                cache,
                input_ids=answers[-1][:, None],
                attention_mask=mask[:, : longest + count + 1],
                position_ids=lengths + count,
            )
            answers.append(token)
            _note(token, batch)
        return [list(map(int, answer)) for answer in torch.stack(answers, dim=1)]

    def _prefill_together(
        self, batch: Sequence[_Waiting], mask: torch.Tensor, cache: Any
    ) -> torch.Tensor:
        """Fill the cache, each sequence up to where the mask [B, N] ends; returns their first
        tokens [B].
        """
        longest = mask.shape[1]
        rows = [
            pad(torch.tensor(waiting.asked.token_ids), (longest - len(waiting.asked.token_ids), 0))
            for waiting in batch
        ]
        token = self._forward(
            cache,
            input_ids=torch.stack(rows).to(mask.device),
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
        )
        _note(token, batch)
        return token

    def _prefill_alone(
        self, batch: Sequence[_Waiting], mask: torch.Tensor, cache: Any
    ) -> torch.Tensor:
        """As `_prefill_together`, a sequence after the other; each has its first token at once."""
        firsts, layers = [], []
        for waiting in batch:
            ids = torch.tensor([waiting.asked.token_ids], device=mask.device)
            output = self.model(input_ids=ids, use_cache=True, logits_to_keep=1)
            firsts.append(output.logits[:, -1].argmax(-1))
            layers.append([(layer.keys, layer.values) for layer in output.past_key_values.layers])
            _note(firsts[-1], [waiting])
        for number in range(len(layers[0])):
            pairs = [own.pop(0) for own in layers]  # what is copied is given up
            room = [(0, 0, mask.shape[1] - keys.shape[2], 0) for keys, _ in pairs]
            cache.update(
                torch.cat(
                    [pad(keys, before) for (keys, _), before in zip(pairs, room, strict=True)]
                ),
                torch.cat(
                    [pad(vals, before) for (_, vals), before in zip(pairs, room, strict=True)]
                ),
                number,
            )
        return torch.cat(firsts)

    def _forward(self, cache: Any, **inputs: torch.Tensor) -> torch.Tensor:
        """A pass of the model; returns the likeliest token behind each sequence [B]."""
        output = self.model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        token: torch.Tensor = output.logits[:, -1].argmax(-1)
        return token


def _note(token: torch.Tensor, batch: Sequence[_Waiting]) -> None:
    """A token of each came: its time counts once the device has it."""
    token.tolist()
    for waiting in batch:
        waiting.times.add()
