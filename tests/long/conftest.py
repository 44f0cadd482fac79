"""How long a soak may take, and how it says what it did."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.long.rows import Row


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long here has limits of its own."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.timeout(0))


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[[str, str, object, object], None]:
    """Called with a group ("Kills"), what was done, how often, and what was lost or wrong."""

    def said(group: str, done: str, times: object, lost: object) -> None:
        date = datetime.now(UTC).date().isoformat()
        row = Row(group, done, str(times), str(lost), request.node.nodeid, date)
        if request.config.getoption("--record"):
            row.write()

    return said
