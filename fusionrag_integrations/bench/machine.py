"""On what, with what and when something was measured."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from fusionrag_integrations.execution.hf.model import CausalModel

_CPU_INFO = Path("/proc/cpuinfo")


def where_and_when() -> dict[str, Any]:
    """The date, the hardware and the versions, as plain values."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": _hardware(),
        "versions": {name: version(name) for name in ("torch", "transformers")}
        | {"python": platform.python_version()},
    }


def described(model: CausalModel) -> dict[str, str]:
    """The model that was timed, as plain values."""
    return {
        "model": model.name,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
    }


def _hardware() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{_processor()}, {torch.get_num_threads()} threads"


def _processor() -> str:
    """The CPU's own name where Linux tells it, else its architecture."""
    text = _CPU_INFO.read_text() if _CPU_INFO.exists() else ""
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else platform.processor() or platform.machine()
