"""What the endpoints of one server share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusionrag_integrations.documents.handles import KVHandle
from fusionrag_integrations.server.admission import Admission
from fusionrag_integrations.server.entrance import Entrance
from fusionrag_integrations.server.keys import Keys
from fusionrag_integrations.server.limits import Limits
from fusionrag_integrations.server.metrics import Metrics
from fusionrag_integrations.server.records import Record
from fusionrag_integrations.server.traffic import Traffic

if TYPE_CHECKING:
    from fusionrag_integrations.engine import FusionEngine


Prefetch = Callable[[Sequence[KVHandle]], None]


@dataclass(frozen=True, slots=True, eq=False)
class Service:
    """An engine, and who may ask it how much.

    answers, lookups, changes: requests for answers; searches, lists and counts of tokens; and
    changes of documents, one at a time. prefetch: as in `create_app`.
    """

    engine: FusionEngine
    entrance: Entrance
    answers: Admission
    lookups: Admission
    changes: Admission
    metrics: Metrics
    prefetch: Prefetch

    @classmethod
    def of(
        cls, engine: FusionEngine, keys: Keys | None, limits: Limits, prefetch: Prefetch
    ) -> Service:
        """A service that has answered nothing yet."""
        traffic = Traffic()
        of_callers: Counter[str] = Counter()
        answers = Admission(limits.at_once, limits.queue, of_callers)
        lookups = Admission(limits.at_once, limits.queue, of_callers)
        changes = Admission(1, limits.queue, of_callers)
        metrics = Metrics(
            engine.metrics,
            lambda: {
                "under_way": traffic.under_way,
                "answering": answers.at_work,
                "queued": answers.waiting + lookups.waiting + changes.waiting,
            },
        )
        entrance = Entrance(keys, limits, traffic)
        return cls(engine, entrance, answers, lookups, changes, metrics, prefetch)

    @property
    def traffic(self) -> Traffic:
        """The requests under way."""
        return self.entrance.traffic

    def ended(self, record: Record) -> None:
        """A request's end: it is counted and logged."""
        self.metrics.ended(record)
        record.log()
