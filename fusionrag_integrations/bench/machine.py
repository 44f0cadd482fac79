"""On what, with what and when something was measured."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch


def where_and_when() -> dict[str, Any]:
    """The date, the hardware and the versions, as plain values."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": _hardware(),
        "versions": {name: version(name) for name in ("torch", "transformers")}
        | {"python": platform.python_version()},
    }


def _hardware() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
