"""What the endpoints of one server share."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields

from fusionrag_integrations.engine import FusionEngine
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.server.admission import Admission
from fusionrag_integrations.server.keys import Keys
from fusionrag_integrations.server.metrics import Metrics
from fusionrag_integrations.server.traffic import Traffic
from fusionrag_integrations.support.inputs import check_fields


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server takes on.

    at_once: answers under way, and as many look-ups beside them. queue: further requests of each
    kind that wait; those beyond are turned away (429). body_bytes: the largest body. grace_seconds:
    how long answers under way may take to finish when the server is told to end.
    """

    at_once: int = 16
    queue: int = 64
    body_bytes: int = 8 << 20
    grace_seconds: float = 30.0

    def __post_init__(self) -> None:
        check_fields(self)
        for field in fields(self):
            least = 1 if field.name in ("at_once", "body_bytes") else 0
            if not getattr(self, field.name) >= least:
                raise InvalidInputError(
                    f"{field.name} is {getattr(self, field.name)}; it must be at least {least}."
                )


@dataclass(frozen=True, slots=True, eq=False)
class Service:
    """An engine, and who may ask it how much.

    keys: None where everybody may do everything. answers, lookups, changes: requests for answers;
    searches, lists and counts of tokens; and changes of documents, one at a time.
    """

    engine: FusionEngine
    keys: Keys | None
    limits: Limits
    traffic: Traffic
    answers: Admission
    lookups: Admission
    changes: Admission
    metrics: Metrics

    @classmethod
    def of(cls, engine: FusionEngine, keys: Keys | None, limits: Limits) -> Service:
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
        return cls(engine, keys, limits, traffic, answers, lookups, changes, metrics)
