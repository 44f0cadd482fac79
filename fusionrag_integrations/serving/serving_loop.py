"""The thread in which a scheduler computes what other threads and event loops submit."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from threading import Condition, Lock, Thread, current_thread, main_thread
from threading import enumerate as all_threads

from fusionrag_integrations.errors import StoreClosedError
from fusionrag_integrations.prompt.messages import Prompt
from fusionrag_integrations.serving.answer import Answer, AnswerStream
from fusionrag_integrations.serving.passes import Limits
from fusionrag_integrations.serving.request import Request
from fusionrag_integrations.serving.scheduler import Scheduler, Step
from fusionrag_integrations.serving.settings import AnswerSettings
from fusionrag_integrations.serving.steps import RequestSteps
from fusionrag_integrations.support.forks import Forkable
from fusionrag_integrations.support.threads import Closable, Threads

OURS = "fusionrag-"  # how the names of engines' threads begin


class ServingLoop(Forkable, Closable):
    """Computes all requests of an engine in one thread, which runs while there are any.

    A pool of threads prepares prompts and reads KV meanwhile. A forked child has its own threads,
    and none of the parent's requests.
    """

    def __init__(self, pipeline: RequestSteps, store: Path, limits: Limits) -> None:
        """store: whose threads they are, for messages."""
        self._pipeline = pipeline
        self._store = store
        self.limits = limits
        self._pool = Threads("fusionrag-prepare", store)
        self._closed = False
        self.in_child()
        super().__init__()

    def in_child(self) -> None:
        """Begin anew."""
        self._changed = Condition()
        self._submitted: deque[Request] = deque()
        self._finished: deque[tuple[Request, Exception | None]] = deque()
        self._has_news = False
        self._thread: Thread | None = None  # None where no request is left
        self._scheduler = Scheduler(self._pipeline, self.limits, self)

    def stream(self, prompt: Prompt, settings: AnswerSettings) -> AnswerStream:
        """An answer. Work begins when it is first read."""
        return AnswerStream(_LoopAnswer(self, self._pipeline.request(prompt, settings)))

    def submit(self, request: Request) -> None:
        """Compute a request. Raises `StoreClosedError` after `close`."""
        with self._changed:
            if self._closed:
                raise StoreClosedError.of(self._store)
            if self._thread is None:
                thread = Thread(target=self._run, name=f"{OURS}passes")
                thread.start()
                self._thread = thread
            request.watch.start()
            self._submitted.append(request)
            self._notify()

    def close(self) -> None:
        """End all requests, which fail with `StoreClosedError`. May be called again.

        Waits for the threads, unless one of them calls it.
        """
        with self._changed:
            self._closed = True
            self._notify()
            thread = self._thread
        if thread is not None and thread is not current_thread():
            thread.join()
        self._pool.close()

    # The scheduler's background.

    def start(self, request: Request, step: Step) -> None:
        """Run a step in the pool."""
        try:
            self._pool.submit(self._run_step, request, step)
        except RuntimeError:  # pools take nothing any more where only other threads go on
            self._run_step(request, step)

    def finished(self) -> Sequence[tuple[Request, Exception | None]]:
        """The requests whose steps have ended since this was called last, and what failed."""
        with self._changed:
            finished, self._finished = self._finished, deque()
        return finished

    def wait(self, count: int, seconds: float) -> None:
        """Until so many have ended, but no longer than this."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._finished) >= count, seconds)

    def _run_step(self, request: Request, step: Step) -> None:
        error: Exception | None = None
        try:
            if not request.cancelled:
                request.watch.lap("queue", wait=False)
                self._pipeline.check_open()
                step(request)
        except Exception as failure:  # noqa: BLE001 whoever reads the answer gets it
            error = failure
        with self._changed:
            self._finished.append((request, error))
            self._notify()

    def _run(self) -> None:
        """Steps until no request is left."""
        try:
            while self._goes_on():
                if not self._scheduler.step():
                    self._wait_for_news()
        except BaseException as error:
            failure = RuntimeError(f"The serving thread has failed: {error}")
            self._scheduler.end_all(failure)
            with self._changed:
                self._thread = None
                while self._submitted:
                    self._submitted.popleft().close(failure)
            raise

    def _goes_on(self) -> bool:
        """Let new requests in. Returns whether there are any."""
        with self._changed:
            self._has_news = False
            submitted, self._submitted = self._submitted, deque()
        for request in submitted:
            self._scheduler.add(request)
        if self._closed or _only_ours_are_left():
            self._scheduler.end_all(StoreClosedError.of(self._store))
        with self._changed:
            if self._submitted or not self._scheduler.idle:
                return True
            self._thread = None
            return False

    def _wait_for_news(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._has_news)

    def _notify(self) -> None:
        self._has_news = True
        self._changed.notify_all()


def _only_ours_are_left() -> bool:
    """Whether the interpreter is at its end, and waits for threads of engines alone."""
    return not main_thread().is_alive() and all(
        thread.daemon or not thread.is_alive() or thread.name.startswith(OURS)
        for thread in all_threads()
    )


class _LoopAnswer:
    """An answer that the loop computes once it is asked for."""

    def __init__(self, loop: ServingLoop, request: Request) -> None:
        self._loop = loop
        self._request = request
        self._changing = Lock()
        self._begun = False

    @property
    def answer(self) -> Answer | None:
        return self._request.answer

    def next_piece(self) -> str | None:
        self.begin()
        return self._request.pieces.get()

    async def anext_piece(self) -> str | None:
        self.begin()
        return await self._request.pieces.aget()

    def close(self) -> None:
        self.abandon()
        self._request.pieces.discard()

    def abandon(self) -> None:
        # The loop needn't be woken: while it sleeps, all requests have steps that wake it.
        self._request.cancelled = True

    def begin(self) -> None:
        with self._changing:
            if not (self._begun or self._request.over):
                self._loop.submit(self._request)
                self._begun = True
