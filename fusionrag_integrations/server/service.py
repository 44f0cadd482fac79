"""What the endpoints of one server share."""

from __future__ import annotations

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

    at_once: answers under way. queue: further requests that wait; those beyond are turned away
    (429). body_bytes: the largest body. grace_seconds: how long answers under way may take to
    finish when the server is told to end.
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

    keys: None where everybody may do everything. answers, changes: requests for answers, and
    those that change documents, one at a time.
    """

    engine: FusionEngine
    keys: Keys | None
    limits: Limits
    traffic: Traffic
    answers: Admission
    changes: Admission
    metrics: Metrics

    @classmethod
    def of(cls, engine: FusionEngine, keys: Keys | None, limits: Limits) -> Service:
        """A service that has answered nothing yet."""
        traffic = Traffic()
        answers = Admission(limits.at_once, limits.queue)
        changes = Admission(1, limits.queue)
        metrics = Metrics(
            engine.metrics,
            lambda: {
                "under_way": traffic.under_way,
                "answering": answers.at_work,
                "queued": answers.waiting + changes.waiting,
            },
        )
        return cls(engine, keys, limits, traffic, answers, changes, metrics)
