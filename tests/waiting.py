"""Waiting for what another thread or process does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import pytest

T = TypeVar("T")
PATIENCE = 60.0  # seconds


def until(holds: Callable[[], T], seconds: float = PATIENCE) -> T:
    """Wait for something, and give it. Fails the test where it doesn't come."""
    ended = time.monotonic() + seconds
    while not (found := holds()):
        if time.monotonic() > ended:
            pytest.fail(f"It didn't come to hold within {seconds:.0f} s.")
        time.sleep(0.02)
    return found
