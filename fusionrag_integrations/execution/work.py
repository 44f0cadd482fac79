"""What is to be computed of one sequence, in as many passes as it takes.

Rows in ascending order see nothing of those behind them, so a pass may take some of them and a
later one the others: what a long prompt needs can be cut where other requests would wait for it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar

import torch

from fusionrag_integrations.execution.executor import DenseInput, SequenceInput
from fusionrag_integrations.execution.hf.plain_model import PlainModel
from fusionrag_integrations.execution.own_attention import OwnInput

Output = TypeVar("Output", covariant=True)
Input = SequenceInput | DenseInput | OwnInput


class Runner(Protocol):
    """What runs passes: an `Executor`, or an `OwnExecutor` where no KV is kept."""

    @property
    def model(self) -> PlainModel:
        """The model that runs."""
        ...

    def run(self, inputs: Sequence[Any]) -> list[torch.Tensor]:
        """One pass. inputs: of the kinds that it knows, as its works take them."""
        ...


class Work(Protocol[Output]):
    """Rows to be computed before something is known."""

    @property
    def left(self) -> int:
        """How many rows no pass has taken."""
        ...

    def take(self, most: int) -> Sequence[Input]:
        """The next rows, about `most` of them, for a pass; at least one."""
        ...

    def give(self, outputs: Sequence[torch.Tensor]) -> None:
        """What the pass has made of the rows taken last, as `Executor.run` returns it."""
        ...

    @property
    def result(self) -> Output:
        """What all rows were computed for, once none is left."""
        ...


class RowsWork(Generic[Output]):
    """Rows of one sequence, in ascending order."""

    def __init__(
        self,
        rows: int,
        piece: Callable[[slice], SequenceInput],
        finish: Callable[[list[torch.Tensor]], Output],
        together: Iterable[range] = (),
    ) -> None:
        """piece: what computes some of the rows. finish: makes the result of all pieces' outputs.

        together: runs of rows that one pass must take, apart and in order.
        """
        self._rows = rows
        self._piece = piece
        self._finish = finish
        self._together = list(together)
        self._taken = 0
        self._outputs: list[torch.Tensor] = []

    @property
    def left(self) -> int:
        return self._rows - self._taken

    def take(self, most: int) -> list[SequenceInput]:
        start, stop = self._taken, min(self._taken + max(1, most), self._rows)
        before = bisect_right(self._together, stop - 1, key=lambda run: run.start) - 1
        if before >= 0 and stop < self._together[before].stop:
            run = self._together[before]
            stop = run.start if run.start > start else run.stop
        self._taken = stop
        return [self._piece(slice(start, stop))]

    def give(self, outputs: Sequence[torch.Tensor]) -> None:
        self._outputs += outputs

    @cached_property
    def result(self) -> Output:
        outputs, self._outputs = self._outputs, []
        return self._finish(outputs)


class SequencesWork(Generic[Output]):
    """Whole sequences, whose rows a pass takes together."""

    def __init__(self, inputs: Sequence[SequenceInput], finish: Callable[[], Output]) -> None:
        """finish: makes the result once all are computed."""
        self._waiting = list(inputs)
        self._finish = finish

    @property
    def left(self) -> int:
        return sum(len(one.positions) for one in self._waiting)

    def take(self, most: int) -> list[SequenceInput]:
        taken, rows = 0, 0
        while taken < len(self._waiting) and (rows < most or not taken):
            rows += len(self._waiting[taken].positions)
            taken += 1
        inputs, self._waiting = self._waiting[:taken], self._waiting[taken:]
        return inputs

    def give(self, outputs: Sequence[torch.Tensor]) -> None:
        """What was computed is in the sequences' KV."""

    @cached_property
    def result(self) -> Output:
        return self._finish()


class WorkNeeded(BaseException):
    """Ends a selector that asks for what a pass is yet to compute; it is called again afterwards.

    No error: selectors that handle errors shall not handle it.
    """

    def __init__(self, work: Work[object]) -> None:
        super().__init__("A pass of the model has to compute this first.")
        self.work = work


def complete(executor: Runner, work: Work[Output]) -> Output:
    """Compute it now, in a pass of its own."""
    if work.left:
        work.give(executor.run(work.take(work.left)))
    return work.result
