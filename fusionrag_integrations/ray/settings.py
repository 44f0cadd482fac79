"""What is served on Ray, and by how many replicas; plain values, which travel between machines."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.server.keys import Keys
from fusionrag_integrations.server.limits import Limits
from fusionrag_integrations.support.inputs import check_fields

if TYPE_CHECKING:
    from fusionrag_integrations.engine import FusionEngine
    from fusionrag_integrations.store.kv.disk_budget import Budgets


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What each replica opens. Paths are the same on all machines.

    model, store, salt, budgets: as in `FusionEngine.from_pretrained`. embedding: MODULE:NAME of one
    that can be imported there. refresh: seconds between looks for a newer version of a store at a
    URL.
    """

    model: str
    store: str
    embedding: str | None = None
    salt: str = field(default="", repr=False)
    budgets: Budgets | None = None
    refresh: float = 60.0

    def open(self) -> FusionEngine:
        """Load the model and open the store. Raises as `FusionEngine.from_pretrained`."""
        from fusionrag_integrations.documents.named import imported
        from fusionrag_integrations.engine import DEFAULT_BUDGETS, FusionEngine

        return FusionEngine.from_pretrained(
            self.model,
            store=self.store,
            embedding=None if self.embedding is None else imported(self.embedding),
            salt=self.salt,
            budgets=self.budgets or DEFAULT_BUDGETS,
        )


@dataclass(frozen=True, slots=True)
class Replicas:
    """How many replicas there are, and what each takes.

    least, most: one more starts while the replicas have more requests each than `Limits.at_once`,
    and one ends while fewer would do. cpus, gpus: of Ray's, also parts of one.
    """

    least: int = 1
    most: int = 1
    cpus: float = 1.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        if not 1 <= self.least <= self.most:
            raise InvalidInputError(
                f"Replicas are {self.least} to {self.most}; give at least 1, and no fewer at most "
                "than at least."
            )
        for name in ("cpus", "gpus"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InvalidInputError(
                    f"A replica's {name} are {getattr(self, name)}; give 0 or more."
                )


@dataclass(frozen=True, slots=True)
class ServingSettings:
    """An engine served by replicas. keys, limits: as in `create_app`, limits of each replica."""

    engine: EngineSettings
    keys: Keys | None = None
    limits: Limits = field(default_factory=Limits)
    replicas: Replicas = field(default_factory=Replicas)
