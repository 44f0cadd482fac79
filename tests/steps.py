"""Tokens as they are decoded: counted, and held up where a test wants to do something meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

import pytest
import torch

from fusionrag_integrations import Answer, AnswerSettings, AnswerStream, FusionEngine
from fusionrag_integrations.prompt.messages import Prompt
from fusionrag_integrations.serving.answer.pieces import Pieces
from fusionrag_integrations.serving.pipeline import Pipeline
from fusionrag_integrations.serving.request import Request
from tests.waiting import until

PATIENCE = 30  # seconds, after which a test fails


class Steps:
    """Every step of decode, in all engines: how many there were. Made to wait, they do.

    One that waits holds up the thread that computes an engine's requests, so all of them.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self._hold_at: int | None = None
        self._held: Request | None = None
        self.is_held, self._go = threading.Event(), threading.Event()
        decode = Pipeline.decode

        def counted(pipeline: Pipeline, request: Request, logits: torch.Tensor) -> None:
            if request.output.token_ids:  # the first token needs no step of the model
                self.count += 1
            if self.count == self._hold_at:
                self._held = request
                self.is_held.set()
                assert self._go.wait(PATIENCE)
            decode(pipeline, request, logits)

        monkeypatch.setattr(Pipeline, "decode", counted)

    def hold_at(self, count: int) -> None:
        """Let the step of this number wait; 0 is before the first token."""
        self._hold_at = count

    async def held(self) -> None:
        """Wait until it does."""
        assert await asyncio.to_thread(self.is_held.wait, PATIENCE)

    async def cancelled(self) -> None:
        """Wait until the request that is held has heard that nobody reads it any more.

        A framework whose own generators lie between may close ours a turn of the loop later.
        """

        def heard() -> bool:
            return self._held is not None and self._held.cancelled

        await asyncio.to_thread(until, heard)

    def go_on(self) -> None:
        self._go.set()

    async def cancel_at(
        self, count: int, call: Coroutine[Any, Any, Any], engine: FusionEngine
    ) -> None:
        """Cancel a call over three chunks while this step waits: it ends, and its work after it."""
        self.hold_at(count)
        task = asyncio.create_task(call)
        await self.held()
        assert kv_in_use(engine) == 3
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task  # at once, for the step is still held
        await self.cancelled()
        self.go_on()
        await until_kv_is_free(engine)


class Noting(Pieces):
    """A request's pieces, which note its answer before whoever reads them finds their end."""

    def __init__(self, request: Request, note: Callable[[Request, Answer], None]) -> None:
        super().__init__()
        self._request = request
        self._note = note
        self._noted = False

    def end(self, error: BaseException | None = None) -> None:
        if self._request.answer is not None and not self._noted:  # it may be ended again
            self._note(self._request, self._request.answer)
            self._noted = True
        super().end(error)


def note_answers(engine: FusionEngine, note: Callable[[Request, Answer], None]) -> None:
    """Have each answer of an engine noted, until its pipeline's `request` is deleted."""
    make = engine.pipeline.request

    def noted(prompt: Prompt, settings: AnswerSettings) -> Request:
        request = make(prompt, settings)
        request.pieces = Noting(request, note)
        return request

    engine.pipeline.request = noted  # type: ignore[method-assign]


class Scripted:
    """An answer whose pieces are given."""

    def __init__(self, pieces: Iterable[str], answer: Answer | None) -> None:
        self._pieces = iter(pieces)
        self._whole = answer
        self.answer: Answer | None = None

    def next_piece(self) -> str | None:
        for piece in self._pieces:
            return piece
        self.answer = self._whole
        return None

    async def anext_piece(self) -> str | None:
        return self.next_piece()

    def close(self) -> None:
        self._pieces = iter(())

    abandon = close


def scripted_stream(pieces: Iterable[str], answer: Answer | None = None) -> AnswerStream:
    return AnswerStream(Scripted(pieces, answer))


def kv_in_use(engine: FusionEngine) -> int:
    """Records that requests hold."""
    return engine.kv.in_use()


def wait_until_kv_is_free(engine: FusionEngine) -> None:
    """Wait until no request holds any: what is closed ends after the pass that is under way."""
    until(lambda: not kv_in_use(engine))


async def until_kv_is_free(engine: FusionEngine) -> None:
    """The same in an event loop."""
    await asyncio.to_thread(wait_until_kv_is_free, engine)


def steps_until(engine: FusionEngine, token_ids: Sequence[int], text: str) -> int:
    """How many steps it takes until these tokens hold a text: the first needs none."""
    for count in range(1, len(token_ids) + 1):
        if text in engine.model.tokenizer.decode(list(token_ids[:count])):
            return count - 1
    raise AssertionError(f"{text!r} is not said.")
