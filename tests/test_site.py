"""The documentation site builds without a warning, needs no network, and holds what it must."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest
from mkdocs.config import load_config
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from fusionrag_integrations.cli import main
from tests.browser import NEEDS_BROWSER

ROOT = Path(__file__).parent.parent
CONFIG = str(ROOT / "mkdocs.yml")
FETCHES = {"href": ("link",), "src": None, "srcset": None, "data": ("object",), "poster": None}
"""Attributes whose targets a browser fetches by itself: of these elements, or of all (None)."""
STYLE_FETCH = re.compile(r"""(?:url\(|@import)\s*["']?((?:https?:)?//[^"')\s]*)""")
ELSEWHERE = re.compile(r"(?:https?:)?//")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with warnings as errors."""
    built = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    done = subprocess.run(
        [*command, "--config-file", CONFIG, "--site-dir", str(built)],
        capture_output=True,
        text=True,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Documentation built" in done.stderr  # a quiet build would pass over warnings
    return built


class Fetched(HTMLParser):
    """What a browser that shows a page fetches by itself."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.targets = STYLE_FETCH.findall(html)
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            elements = FETCHES.get(name, ())
            if value and (elements is None or tag in elements):
                self.targets.append(value)


def test_every_page_of_the_navigation_is_there(site: Path) -> None:
    def pages(entries: Any) -> Iterator[str]:
        for entry in entries:
            if isinstance(entry, str):
                yield entry
            else:
                for inner in entry.values():
                    yield from pages([inner] if isinstance(inner, str) else inner)

    listed = list(pages(load_config(CONFIG).nav))
    assert len(listed) > 30
    missing = [page for page in listed if not (site / page).with_suffix(".html").is_file()]
    assert missing == []


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    fetched = {str(page): Fetched(page.read_text()).targets for page in pages}
    assert all(len(targets) > 5 for targets in fetched.values())
    fetched |= {str(css): STYLE_FETCH.findall(css.read_text()) for css in site.rglob("*.css")}
    foreign = [
        (page, target)
        for page, targets in fetched.items()
        for target in targets
        if ELSEWHERE.match(target)
    ]
    assert foreign == []


def test_what_is_fetched_from_elsewhere_is_seen() -> None:
    html = '<a href="https://a"></a><script src="//b"></script><link href="http://c"><style>'
    found = Fetched(html + "@import 'https://d';</style>").targets
    assert sorted(target for target in found if ELSEWHERE.match(target)) == [
        "//b",
        "http://c",
        "https://d",
    ]


@pytest.mark.parametrize("room", ["", ".langchain", ".llama_index"])
def test_every_public_name_has_an_entry(site: Path, room: str) -> None:
    module = import_module(f"fusionrag_integrations{room}")
    reference = "".join(page.read_text() for page in (site / "reference").glob("*.html"))
    headings = set(re.findall(r'<h\d id="([^"]+)"', reference))
    assert len(module.__all__) > 3
    for name in module.__all__:
        defined = f"{getattr(module, name).__module__}.{name}"
        assert {f"{module.__name__}.{name}", defined} & headings, name


def commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from commands(inner, f"{path} {name}")


def test_every_command_and_option_is_in_the_reference(site: Path) -> None:
    page = (site / "reference" / "command_line.html").read_text()
    parts = re.split(r'<h\d id="([^"]+)"', page)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    for path, command in commands(main, "fusionrag"):
        section = sections[path.replace(" ", "-")]
        for option in command.params:
            if isinstance(option, click.Option):
                assert re.search(rf"<code>{option.opts[0]}(?![\w-])", section), (path, option)


class TestInABrowser:
    pytestmark = NEEDS_BROWSER

    def test_it_is_read_and_searched_from_a_disk(self, site: Path, browser: Chrome) -> None:
        browser.get((site / "index.html").as_uri())
        browser.execute_script("document.querySelector('[for=__search]').click()")
        browser.find_element(By.CSS_SELECTOR, "input[name=query]").send_keys("repetition_penalty")
        found = (By.CSS_SELECTOR, ".md-search-result__link")
        WebDriverWait(browser, 20).until(lambda driver: driver.find_elements(*found))
        links = [link.get_attribute("href") or "" for link in browser.find_elements(*found)]
        assert any("reference/types.html" in link for link in links)
        assert (
            browser.execute_script(  # files don't count as resources
                "return performance.getEntriesByType('resource').map(entry => entry.name)"
            )
            == []
        )
        assert browser.get_log("browser") == []
