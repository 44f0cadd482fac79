"""Server-sent events."""

from __future__ import annotations

import json
from typing import Any

EVENTS = "text/event-stream"


def event(content: dict[str, Any]) -> str:
    """An object as an event."""
    return f"data: {json.dumps(content)}\n\n"
