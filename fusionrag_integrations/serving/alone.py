"""One request at a time, in the thread that asks: what requests together are compared with."""

from __future__ import annotations

from collections.abc import Sequence

from fusionrag_integrations.prompt.messages import Prompt
from fusionrag_integrations.serving.answer import Answer
from fusionrag_integrations.serving.passes import Limits
from fusionrag_integrations.serving.request import Request
from fusionrag_integrations.serving.scheduler import Scheduler, Step
from fusionrag_integrations.serving.settings import AnswerSettings
from fusionrag_integrations.serving.steps import RequestSteps


class AtOnce:
    """A scheduler's background that has none: steps run when they are begun."""

    def __init__(self) -> None:
        self._finished: list[tuple[Request, Exception | None]] = []

    def start(self, request: Request, step: Step) -> None:
        """Run a step."""
        error: Exception | None = None
        try:
            step(request)
        except Exception as failure:  # noqa: BLE001 whoever reads the answer gets it
            error = failure
        self._finished.append((request, error))

    def finished(self) -> Sequence[tuple[Request, Exception | None]]:
        """The requests whose steps have ended since this was called last, and what failed."""
        finished, self._finished = self._finished, []
        return finished

    def wait(self, count: int, seconds: float) -> None:
        """All have ended."""


def answer_alone(pipeline: RequestSteps, prompt: Prompt, settings: AnswerSettings) -> Answer:
    """Answer a prompt. Raises as `FusionEngine.answer` does."""
    limits = Limits.on(pipeline.executor.model)
    scheduler = Scheduler(pipeline, limits, AtOnce())
    request = pipeline.request(prompt, settings)
    scheduler.add(request)
    while not scheduler.idle:
        scheduler.step()
    while request.pieces.get() is not None:  # raises what has ended it
        pass
    if request.answer is None:
        raise RuntimeError("The request has ended without an answer.")
    return request.answer
