"""The processes of a test's own Ray."""

from __future__ import annotations

import psutil


def ray_processes(part: str) -> list[psutil.Process]:
    """Those of which Ray says that they do this."""
    return [p for p in psutil.Process().children(recursive=True) if part in title(p)]


def title(process: psutil.Process) -> str:
    """What Ray says that a process does."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""
