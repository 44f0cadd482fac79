"""What the workers of an ingest did, as they tell it batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class StageAccount:
    """What workers did in one stage.

    items: documents, or chunks, whose batches were completed; of these `found` were there already.
    lost: those that were begun by a worker that was lost, and then again by another. starts: how
    many workers became ready, within loading_seconds; seconds: they worked; both summed over them.
    kv_bytes: of the records that they wrote.
    """

    stage: str
    items: int = 0
    found: int = 0
    lost: int = 0
    starts: int = 0
    loading_seconds: float = 0.0
    seconds: float = 0.0
    kv_bytes: int = 0


@dataclass(slots=True)
class Done:
    """What came of a batch, which its worker fills in."""

    found: int = 0
    kv_bytes: int = 0


class Tells(Protocol):
    """Where workers tell what they do."""

    def started(self, stage: str, seconds: float) -> None:
        """A worker is ready, after so many seconds."""

    def began(self, stage: str, items: int) -> None:
        """A worker began a batch."""

    def ended(self, stage: str, items: int, seconds: float, done: Done) -> None:
        """A worker completed a batch."""

    def completed(self, stage: str) -> int:
        """How many items' batches are completed."""
        ...


@dataclass
class Ledger:
    """`Tells` that adds it all up."""

    _stages: dict[str, StageAccount] = field(default_factory=dict)
    _began: dict[str, int] = field(default_factory=dict)

    def started(self, stage: str, seconds: float) -> None:
        known = self._stage(stage)
        self._stages[stage] = replace(
            known,
            starts=known.starts + 1,
            loading_seconds=known.loading_seconds + seconds,
        )

    def began(self, stage: str, items: int) -> None:
        self._began[stage] = self._began.get(stage, 0) + items

    def ended(self, stage: str, items: int, seconds: float, done: Done) -> None:
        known = self._stage(stage)
        self._stages[stage] = replace(
            known,
            items=known.items + items,
            found=known.found + done.found,
            seconds=known.seconds + seconds,
            kv_bytes=known.kv_bytes + done.kv_bytes,
        )

    def completed(self, stage: str) -> int:
        return self._stage(stage).items

    def accounts(self) -> tuple[StageAccount, ...]:
        """By stage, in the order in which they began. Of an ingest that has ended."""
        return tuple(
            replace(stage, lost=self._began.get(name, 0) - stage.items)
            for name, stage in self._stages.items()
        )

    def _stage(self, stage: str) -> StageAccount:
        return self._stages.get(stage, StageAccount(stage))


class RemoteLedger:
    """`Tells` to a `Ledger` that is an actor of Ray's. A batch is told of before it begins."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def started(self, stage: str, seconds: float) -> None:
        _get(self._actor.started.remote(stage, seconds))

    def began(self, stage: str, items: int) -> None:
        _get(self._actor.began.remote(stage, items))

    def ended(self, stage: str, items: int, seconds: float, done: Done) -> None:
        _get(self._actor.ended.remote(stage, items, seconds, done))

    def completed(self, stage: str) -> int:
        return int(_get(self._actor.completed.remote(stage)))


def _get(told: Any) -> Any:
    import ray

    return ray.get(told)


@contextmanager
def told(tells: Tells, stage: str, items: int) -> Iterator[Done]:
    """Tell of a batch; not of its end where it fails."""
    tells.began(stage, items)
    started = perf_counter()
    done = Done()
    yield done
    tells.ended(stage, items, perf_counter() - started, done)
