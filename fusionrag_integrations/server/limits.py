"""What a server takes on at most."""

from __future__ import annotations

from dataclasses import dataclass, fields

from fusionrag_integrations.errors import InvalidInputError
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
