"""Which workers an ingest on Ray has, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass

from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.support.inputs import check_fields


@dataclass(frozen=True, slots=True)
class Workers:
    """Processes that hold the model, one each.

    cpus, gpus: of each; gpus may be a part of one. Without GPUs the model runs on the CPUs.
    price_per_hour: of a worker, in any currency. Raises `InvalidInputError` for what no machine
    has.
    """

    count: int = 1
    cpus: int = 1
    gpus: float = 0.0
    price_per_hour: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.count < 1 or self.cpus < 1 or self.gpus < 0:
            raise InvalidInputError(
                f"{self.count} workers with {self.cpus} CPUs and {self.gpus:g} GPUs each can't "
                "work; give at least one worker and one CPU, and no negative share of a GPU."
            )
        if self.price_per_hour is not None and self.price_per_hour < 0:
            raise InvalidInputError(
                f"A worker's price is {self.price_per_hour:g} an hour; give 0 or more."
            )
