"""One more token of each of several requests: decode without Python's share of each step.

A step of a large model takes a GPU less time than Python takes to launch its kernels. A CUDA graph
launches them all at once. It repeats one step over tensors that stay where they are, so token ids,
positions and the tables of where each request's KV is have fixed places; before each step they are
filled in for whichever requests it is. Their number is rounded up, so that few graphs serve them
all: what is missing is padding, rows over KV that nobody reads.
"""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from threading import Lock
from typing import cast

import torch

from fusionrag_integrations.attention.rows import Rows, sent
from fusionrag_integrations.execution.buffer import SequenceKV
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.execution.hf.rows_batches import Group, RowsBatches
from fusionrag_integrations.execution.hf.rows_pass import batches_inputs
from fusionrag_integrations.execution.padding import Padding
from fusionrag_integrations.execution.rows_kv import FixedBatch, RowsKV

logger = logging.getLogger(__name__)

EAGER_STEPS = 3  # a short answer is out before a graph would pay; these also compile the kernels
MOST_GRAPHS = 32  # that are kept, those used last; each holds the memory of a step's states
SIZES = (1, 2, 4, 8, 12, 16, 24)  # of batches; larger ones are multiples of the step behind them
SIZE_STEP = 16

StepFunction = Callable[[int], torch.Tensor]
"""Appends a token id and gives the logits [V] behind it."""


@dataclass(frozen=True, slots=True, eq=False)
class DecodeRow:
    """A request's next token: its id and position, and the KV that it is appended to."""

    token_id: int
    position: int
    kv: SequenceKV


def padded_size(count: int) -> int:
    """How many rows a step over so many requests has."""
    return next((s for s in SIZES if s >= count), -(-count // SIZE_STEP) * SIZE_STEP)


class DecodeSteps:
    """Steps over requests of any number and kind of KV, a graph for each size and layout."""

    def __init__(self, model: CausalModel) -> None:
        self._model = model
        self._padding = Padding(model)
        self._lock = Lock()  # over the fixed tensors
        self._steps: OrderedDict[Hashable, FixedStep] = OrderedDict()
        self._kvs: list[weakref.ref[SequenceKV]] = []
        self._last: FixedStep | None = None

    @torch.inference_mode()
    def __call__(self, rows: Sequence[DecodeRow]) -> torch.Tensor:
        """Append the rows' tokens to their KV; logits behind each, [B, V]."""
        with self._lock:
            batch = PaddedBatch(self._model, self._padding, rows)
            if self._last is not None and self._are_the_last(rows):
                step = self._last
                step.move(batch)
            else:
                step = self._step_for(batch)
                step.take(batch)
                self._last, self._kvs = step, [weakref.ref(row.kv) for row in rows]
            return step.run()[batch.places]

    @property
    def graphs(self) -> int:
        """How many graphs are kept."""
        return sum(step.is_graph for step in self._steps.values())

    def _are_the_last(self, rows: Sequence[DecodeRow]) -> bool:
        return len(rows) == len(self._kvs) and all(
            kept() is row.kv for kept, row in zip(self._kvs, rows, strict=True)
        )

    def _step_for(self, batch: PaddedBatch) -> FixedStep:
        if batch.layout in self._steps:
            self._steps.move_to_end(batch.layout)
        else:
            self._steps[batch.layout] = FixedStep(self._model, self._padding, batch)
            if len(self._steps) > MOST_GRAPHS:
                self._steps.popitem(last=False)
        return self._steps[batch.layout]


class PaddedBatch:
    """The rows of a step by kind of KV, each kind padded to a size that graphs are made for.

    sizes: of each kind. places: where the rows stand among all, int64 [B] on the device.
    """

    def __init__(self, model: CausalModel, padding: Padding, rows: Sequence[DecodeRow]) -> None:
        kinds: defaultdict[type, list[tuple[int, RowsKV]]] = defaultdict(list)
        for number, row in enumerate(rows):
            kv = row.kv.over(Rows.at((row.position,), model.device))
            kinds[type(kv)].append((number, kv))
        self._heads = model.num_heads
        self.sizes = {kind: padded_size(len(alike)) for kind, alike in kinds.items()}
        self.kvs: list[RowsKV] = []
        self.batches: list[FixedBatch] = []
        token_ids, places = [], [0] * len(rows)
        for kind, alike in kinds.items():
            missing = self.sizes[kind] - len(alike)
            for place, (number, _) in enumerate(alike, len(self.kvs)):
                places[number] = place
            token_ids += [*(rows[number].token_id for number, _ in alike), *[0] * missing]
            kvs = [*(kv for _, kv in alike), *[padding.of(kind)] * missing]
            self.kvs += kvs
            self.batches.append(cast("FixedBatch", kvs[0].batch(kvs)))
        self.places = sent(torch.tensor(places), model.device)
        positions = [kv.rows.positions[0] for kv in self.kvs]
        self.inputs = sent(torch.tensor([token_ids, positions]), model.device)

    @property
    def layout(self) -> Hashable:
        """What can't change in a graph."""
        layouts = [batch.layout(self._heads) for batch in self.batches]
        return tuple(zip(self.sizes.items(), layouts, strict=True))


class FixedStep:
    """A step over tensors that stay where they are: a few times as it is, then as a graph.

    Where no graph can be made, it goes on as before, and says so in the log. Logits are overwritten
    by the next step.
    """

    def __init__(self, model: CausalModel, padding: Padding, batch: PaddedBatch) -> None:
        """batch: one of those that it is for. It begins as nothing but padding."""
        self._model = model
        self._inputs = torch.zeros_like(batch.inputs)
        starts = accumulate(batch.sizes.values(), initial=0)
        self._batches: list[FixedBatch] = []
        groups = []
        for (kind, size), start in zip(batch.sizes.items(), starts, strict=False):
            kvs = [padding.of(kind)] * size
            self._batches.append(cast("FixedBatch", kvs[0].batch(kvs)))
            if model.window is not None:
                self._batches[-1].fix(model.window)
            groups.append(Group(self._batches[-1], slice(start, start + size)))
        self._groups = RowsBatches(groups, model.device)
        self._until_graph = EAGER_STEPS  # negative: none could be made
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits = torch.empty(0)

    @property
    def is_graph(self) -> bool:
        """Whether a graph is being repeated by now."""
        return self._graph is not None

    def take(self, batch: PaddedBatch) -> None:
        """What the next `run` appends."""
        self._inputs.copy_(batch.inputs)
        for kept, new in zip(self._batches, batch.batches, strict=True):
            kept.take(new, self._model.num_heads)

    def move(self, batch: PaddedBatch) -> None:
        """The same, where it is of the KV that this step appended to before."""
        self._inputs.copy_(batch.inputs)
        for kept, new in zip(self._batches, batch.batches, strict=True):
            kept.move(new)

    def run(self) -> torch.Tensor:
        """Append; logits of all rows, padding's among them, [R, V]."""
        if self._until_graph == 0 and self._graph is None:
            self._graph = self._captured()
        if self._graph is None:
            self._until_graph -= 1
            return self._forward()
        self._graph.replay()
        return self._logits

    def _forward(self) -> torch.Tensor:
        token_ids, positions = self._inputs
        limit = self._model.context_window
        layout = self._model.layout
        given = batches_inputs(layout, self._groups, token_ids, positions, limit)
        logits: torch.Tensor = self._model.hf(**given).logits[0]
        return logits

    def _captured(self) -> torch.cuda.CUDAGraph | None:
        """A step as a graph, which was recorded but hasn't run; None where that fails."""
        try:
            graph = torch.cuda.CUDAGraph()
            stream = torch.cuda.Stream(self._model.device)  # type: ignore[no-untyped-call]
            # Other threads may go on with requests of their own meanwhile.
            mode = "thread_local"
            with (
                self._model.graph_lock,
                torch.cuda.graph(graph, stream=stream, capture_error_mode=mode),
            ):
                self._logits = self._forward()
        except RuntimeError as error:
            logger.warning("Decode goes on without a CUDA graph, which can't be made: %s", error)
            return None
        return graph
