"""The most memory that this process took during a load, in host memory and on the device."""

from __future__ import annotations

from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_PEAK = "VmHWM:"
_CLEAR = Path("/proc/self/clear_refs")
_CLEAR_PEAK = "5"  # proc(5): resets the peak resident set size


class PeakMemory:
    """Begins to watch when it is made."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._watched = _STATUS.exists() and _CLEAR.exists()
        if self._watched:
            _CLEAR.write_text(_CLEAR_PEAK)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    @property
    def host(self) -> int | None:
        """Bytes of the resident set at its largest; None where the system can't tell (no Linux)."""
        if not self._watched:
            return None
        (line,) = (row for row in _STATUS.read_text().splitlines() if row.startswith(_PEAK))
        return int(line.split()[1]) * 1024

    @property
    def device(self) -> int | None:
        """Bytes of tensors on a GPU at their most; None without one."""
        if self._device.type != "cuda":
            return None
        return int(torch.cuda.max_memory_allocated(self._device))
