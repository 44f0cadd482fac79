"""Continuous batching: requests share passes of the model, and come and go between passes.

added --prepare--> prepared --room?--> admitted --read--> at work --passes--> done

Preparing, and reading KV that is in no memory, go on in the background. Only `step` changes a
request that is at work, so none needs a lock.
"""

from __future__ import annotations

import logging
from bisect import insort
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from fusionrag_integrations.errors import KVRecordError
from fusionrag_integrations.serving.passes import Limits, Share, plan
from fusionrag_integrations.serving.request import Request, Stage
from fusionrag_integrations.serving.steps import RequestSteps

logger = logging.getLogger(__name__)

MOMENT = 0.02  # seconds, in which most prompts are prepared; a pass takes several times as long

Step = Callable[[Request], None]


class Background(Protocol):
    """Where steps run that a pass needn't wait for."""

    def start(self, request: Request, step: Step) -> None:
        """Begin a step."""
        ...

    def finished(self) -> Sequence[tuple[Request, Exception | None]]:
        """The requests whose steps have ended since this was called last, and what failed."""
        ...

    def wait(self, count: int, seconds: float) -> None:
        """Until so many have ended, but no longer than this."""
        ...


class Scheduler:
    """Computes requests together, pass by pass. Used by one thread.

    A request that fails, is cancelled or stops ends alone. First come, first served: no request
    is let in before one that came earlier and found no room.
    """

    def __init__(self, pipeline: RequestSteps, limits: Limits, background: Background) -> None:
        self.limits = limits
        self._pipeline = pipeline
        self._executor = pipeline.executor
        self._background = background
        self._added = 0
        self._awaited = -1  # the newest that a pass was put off for
        self._elsewhere: dict[Request, Step] = {}  # the steps that go on in the background
        self._prepared: list[Request] = []
        self._at_work: list[Request] = []

    @property
    def idle(self) -> bool:
        """Whether no request is left."""
        return not (self._elsewhere or self._prepared or self._at_work)

    def add(self, request: Request) -> None:
        """Compute a request from now on."""
        request.number = self._added
        self._added += 1
        self._begin(request, self._pipeline.prepare)

    def step(self) -> bool:
        """Admit whom there is room for, run a pass, and end what is done.

        Returns whether that was anything; if not, all requests wait for the background.
        """
        self._await_new()
        came = self._receive()
        admitted = self._admit()
        for request in tuple(self._at_work):
            self._attempt(request, self._pipeline.advance)
        shares = self._next_pass()
        if shares:
            self._run(shares)
        ended = self._drop_ended()
        return came or admitted or ended or bool(shares)

    def end_all(self, error: Exception) -> None:
        """End all requests by an error; those in the background end when they come from there."""
        for request in self._elsewhere:
            request.pieces.end(error)
            request.cancelled = True
        for request in (*self._prepared, *self._at_work):
            request.close(error)
        self._drop_ended()

    def _begin(self, request: Request, step: Step) -> None:
        self._elsewhere[request] = step
        self._background.start(request, step)

    def _await_new(self) -> None:
        """Put a pass off for a moment, once for each request: prepared by then, it takes part."""
        preparing = [r for r, step in self._elsewhere.items() if step == self._pipeline.prepare]
        newest = max((request.number for request in preparing), default=-1)
        if self._at_work and newest > self._awaited:
            self._awaited = newest
            self._background.wait(len(preparing), MOMENT)

    def _receive(self) -> bool:
        """Take over what comes from the background. Returns whether anything does."""
        finished = self._background.finished()
        for request, error in finished:
            prepared = self._elsewhere.pop(request) == self._pipeline.prepare
            if error is not None or request.cancelled:
                request.close(error)
            else:
                insort(self._prepared if prepared else self._at_work, request, key=_arrival)
        return bool(finished)

    def _admit(self) -> bool:
        """Let in those who came first while there is room. Returns whether anybody was."""
        admitted = False
        while self._prepared and self._has_room(self._prepared[0]):
            request = self._prepared.pop(0)
            admitted = True
            if not (request.dense or self._pipeline.reads_at_once(request)):
                self._begin(request, self._pipeline.read)
                continue
            request.watch.lap("queue", wait=False)
            if not request.dense:
                self._attempt(request, self._pipeline.read)
            insort(self._at_work, request, key=_arrival)
        return admitted

    def _has_room(self, request: Request) -> bool:
        reading = [r for r, step in self._elsewhere.items() if step == self._pipeline.read]
        others = [*self._at_work, *reading]
        if not others:
            return True
        tokens = sum(other.capacity for other in (*others, request))
        fits = tokens * self._executor.model.kv_bytes <= self.limits.kv_bytes
        return fits and len(others) < self.limits.requests

    def _next_pass(self) -> list[Share]:
        """Who takes part, and by how much. After a pass that failed each has one to itself."""
        ready = [request for request in self._at_work if not request.over]
        suspects = [request for request in ready if request.suspect]
        limits = self.limits.brief if self._elsewhere else self.limits
        shares = plan(suspects[:1] or ready, limits)
        if len(shares) > 1:  # nobody shall wait for another's disk, nor for its damage
            for share in shares:
                self._attempt(share.request, self._pipeline.settle)
        return [share for share in shares if share.request in self._at_work]

    def _run(self, shares: Sequence[Share]) -> None:
        """A pass, and what each request makes of it."""
        taken = [share.take() for share in shares]
        try:
            outputs = iter(self._executor.run([one for inputs in taken for one in inputs]))
        except Exception as error:  # noqa: BLE001 whoever reads the answers gets it
            self._pass_failed([share.request for share in shares], error)
            return
        for share, inputs in zip(shares, taken, strict=True):
            own = [next(outputs) for _ in inputs]
            share.request.suspect = False
            self._attempt(share.request, partial(self._pipeline.take_in, outputs=own))

    def _pass_failed(self, requests: Sequence[Request], error: Exception) -> None:
        """Nobody knows at whom a shared pass failed: each goes on in one of its own."""
        if len(requests) == 1:
            self._failed(requests[0], error)
            return
        logger.warning(
            "A pass of %d requests failed, so each goes on alone: %s", len(requests), error
        )
        for request in requests:
            request.suspect = True
            self._begin_again(request)

    def _attempt(self, request: Request, step: Step) -> None:
        """A step of one request; if it fails, that request ends alone."""
        if request.over:
            return
        try:
            self._pipeline.check_open()
            step(request)
        except Exception as error:  # noqa: BLE001 whoever reads the answer gets it
            self._failed(request, error)

    def _failed(self, request: Request, error: Exception) -> None:
        """Damage that shows late is no failure: the request goes on without that record."""
        late = isinstance(error, KVRecordError) and request.stage is not Stage.DECODE
        if late and not request.wait_for_all:
            logger.warning("Starting again without a KV record: %s", error)
            request.wait_for_all = True
            self._begin_again(request)
        else:
            request.close(error)

    def _begin_again(self, request: Request) -> None:
        """Compute the prompt again; decode just repeats its step."""
        if request.stage is Stage.DECODE:
            return
        request.work = None
        if not request.dense:
            self._at_work.remove(request)
            self._begin(request, self._pipeline.read)

    def _drop_ended(self) -> bool:
        ended = [request for request in (*self._prepared, *self._at_work) if request.over]
        for request in ended:
            request.close()
        self._prepared = [request for request in self._prepared if request not in ended]
        self._at_work = [request for request in self._at_work if request not in ended]
        return bool(ended)


def _arrival(request: Request) -> int:
    return request.number
