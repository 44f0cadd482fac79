"""One token after the other: decode without Python's share of each step.

A step of a large model takes a GPU less time than Python takes to launch its kernels. A CUDA graph
launches them all at once. It repeats one step over tensors that stay where they are, so the token,
its position and the logits have fixed places, and the device itself counts the position up.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Lock

import torch

from fusionrag_integrations.attention.rows import MovingRow, Rows

logger = logging.getLogger(__name__)

EAGER_STEPS = 3  # a short answer is out before a graph would pay; these also compile the kernels

StepFunction = Callable[[int], torch.Tensor]
"""Appends a token id and gives the logits [V] behind it."""


class StaticStep:
    """Appends tokens with tensors that stay where they are."""

    @torch.inference_mode()
    def __init__(
        self,
        forward: Callable[[torch.Tensor, Rows], torch.Tensor],
        position: int,
        limit: int,
        device: torch.device,
    ) -> None:
        """forward: logits [V] of a token id [1] at a row. limit: where there is no more room."""
        self._forward = forward
        self._token = torch.zeros(1, dtype=torch.int64, device=device)
        self._position = torch.tensor([position], device=device)
        self._row = MovingRow(self._position, limit)

    @torch.inference_mode()
    def feed(self, token_id: int) -> None:
        """The token that the next `run` appends."""
        self._token.fill_(token_id)

    @torch.inference_mode()
    def run(self) -> torch.Tensor:
        """Append the token; logits [V]. All its work is on the device."""
        logits = self._forward(self._token, self._row)
        self._position.add_(1)
        return logits


class GraphedSteps:
    """A step function on CUDA: a few steps as they are, then a graph of one, repeated.

    Logits are overwritten by the next step. Where no graph can be made, it goes on as before, and
    says so in the log.
    """

    def __init__(self, step: StaticStep, device: torch.device, one_at_a_time: Lock) -> None:
        """one_at_a_time: held while a graph is recorded, for which the device must be quiet."""
        self._step = step
        self._device = device
        self._one_at_a_time = one_at_a_time
        self._until_graph = EAGER_STEPS  # negative: none could be made
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits = torch.empty(0)

    @property
    def is_graph(self) -> bool:
        """Whether a graph is being repeated by now."""
        return self._graph is not None

    def __call__(self, token_id: int) -> torch.Tensor:
        self._step.feed(token_id)
        if self._until_graph == 0 and self._graph is None:
            self._graph = self._captured()
        if self._graph is None:
            self._until_graph -= 1
            return self._step.run()
        self._graph.replay()
        return self._logits

    def _captured(self) -> torch.cuda.CUDAGraph | None:
        """A step as a graph, which was recorded but hasn't run; None where that fails."""
        try:
            graph = torch.cuda.CUDAGraph()
            stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            # Other threads may go on with requests of their own meanwhile.
            mode = "thread_local"
            with (
                self._one_at_a_time,
                torch.cuda.graph(graph, stream=stream, capture_error_mode=mode),
            ):
                self._logits = self._step.run()
        except RuntimeError as error:
            logger.warning("Decode goes on without a CUDA graph, which can't be made: %s", error)
            return None
        return graph
