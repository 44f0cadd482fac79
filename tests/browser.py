"""Chromium without a window, driven by Selenium.

Both Chromium and its driver come from the system (Debian: `apt-get install chromium
chromium-driver`). Where they are missing the tests that need them are skipped; CI installs them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from shutil import which

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

DRIVER = which("chromedriver")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--window-size=1000,800",
)

# What marks a test that uses the fixture `browser`. The driver is reached through loopback.
NEEDS_BROWSER = [
    pytest.mark.skipif(DRIVER is None, reason="needs Chromium with its driver"),
    pytest.mark.allow_hosts(["127.0.0.1", "localhost", "::1"]),
]


@contextmanager
def open_browser() -> Iterator[Chrome]:
    """A browser that keeps what pages log."""
    options = ChromeOptions()
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with Chrome(options, Service(DRIVER)) as driver:
        yield driver
