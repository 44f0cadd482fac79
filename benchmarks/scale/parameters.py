"""What a simulated replica is like, read from a file of measured values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.support.inputs import parse_json


@dataclass(frozen=True, slots=True)
class Speed:
    """How quickly KV comes from a tier: seconds before its first byte, then bytes a second."""

    latency_s: float
    bytes_s: float


@dataclass(frozen=True, slots=True)
class Service:
    """What a replica needs to answer a prompt.

    bytes_a_token: of KV as it is stored. recomputed: the share of chunk tokens that is computed
    again; at 1 no KV is used, and none is fetched. fixed_s, row_s, pair_s: of a prefill, seconds
    a pass, a computed token, and a pair of a computed token and one that it attends to; KV in
    memory is included. decode_step_s: seconds between tokens of an answer; decode_device_s: the
    device's own for one of them, less where steps are shared. object_shared_bytes_s: of object
    storage, for all replicas together.
    """

    bytes_a_token: float
    recomputed: float
    fixed_s: float
    row_s: float
    pair_s: float
    decode_step_s: float
    decode_device_s: float
    disk: Speed
    object_storage: Speed
    object_shared_bytes_s: float

    def prefill_s(self, chunk_tokens: float, own_tokens: float) -> float:
        """Seconds of the device before the first token, with all KV in memory."""
        selected = self.recomputed * chunk_tokens
        pairs = selected * chunk_tokens / 2 + own_tokens * (chunk_tokens + own_tokens / 2)
        return self.fixed_s + self.row_s * (selected + own_tokens) + self.pair_s * pairs

    @property
    def fetches(self) -> bool:
        return self.recomputed < 1.0


@dataclass(frozen=True, slots=True)
class Cluster:
    """Replicas that are alike. A budget of 0 bytes is a tier that isn't there.

    report_every_s: how old reports of what is in memory get; 0: they are never outdated.
    """

    replicas: int
    memory_bytes: float
    disk_bytes: float
    service: Service
    report_every_s: float = 0.0

    def __post_init__(self) -> None:
        if self.replicas < 1 or self.memory_bytes < 0 or self.disk_bytes < 0:
            raise InvalidInputError(
                f"A cluster has {self.replicas} replicas, {self.memory_bytes} bytes of memory and "
                f"{self.disk_bytes} of disk each; give at least 1 replica, and no fewer than 0."
            )


def read_service(path: Path) -> Service:
    """What was measured, from a JSON file with the fields of `Service`; others are ignored.

    Raises `InvalidInputError` for a file that lacks one.
    """
    return service_from(parse_json(path.read_text(encoding="utf-8")), str(path))


def service_from(values: Mapping[str, Any], source: str) -> Service:
    """As `read_service`, from what such a file holds. source: its name, for messages."""
    try:
        fields: dict[str, Any] = {
            name: Speed(**values[name]) if kind == "Speed" else float(values[name])
            for name, kind in Service.__annotations__.items()
        }
        return Service(**fields)
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInputError(f"{source} lacks a figure of a service: {error}.") from error
