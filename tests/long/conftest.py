"""How a soak says what it did."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from tests.long.rows import Row


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--record", action="store_true", help="keep what was found in docs/results/reliability"
    )


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[[str, str, object, object], None]:
    """Called with a group ("Kills"), what was done, how often, and what was lost or wrong."""

    def said(group: str, done: str, times: object, lost: object) -> None:
        date = datetime.now(UTC).date().isoformat()
        row = Row(group, done, str(times), str(lost), request.node.nodeid, date)
        if request.config.getoption("--record"):
            row.write()

    return said
