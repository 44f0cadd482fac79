"""The page of an answer, as a real browser renders it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from fusionrag_integrations import Answer, AnswerSettings, FusionEngine
from tests.answer.test_explain import traced
from tests.browser import NEEDS_BROWSER
from tests.conftest import all_records, town

pytestmark = NEEDS_BROWSER
HOSTILE = "<img src=x onerror=\"document.title='broken out'\"> <script>alert(1)</script>"
LONG = "w" * 300  # a word that no line has room for


@pytest.fixture(scope="module")
def answer(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Answer:
    """An answer over four chunks, three fused, half recomputed; its question would be markup."""
    store = tmp_path_factory.mktemp("explained") / "store"
    engine = FusionEngine.from_pretrained(model_dir, store=store, chunk_tokens=48)
    engine.ingest([town(0), town(1)])
    chunks = [record.chunk.text for record in all_records(engine.store.catalog)][:4]
    prompt = "\n\n".join([*chunks, f"What is near the bank? {HOSTILE} {LONG}"])
    return engine.answer(prompt, AnswerSettings(selector="random", ratio=0.5, max_tokens=4))


@pytest.fixture
def page(browser: Chrome, answer: Answer, tmp_path: Path) -> Chrome:
    answer.explain().save(tmp_path / "why.html")
    browser.get((tmp_path / "why.html").as_uri())
    return browser


def colour(element: WebElement) -> str:
    return element.value_of_css_property("background-color")


def test_it_is_complete_in_itself(page: Chrome) -> None:
    assert page.execute_script("return document.scripts.length") == 0
    assert page.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert page.get_log("browser") == []


def test_a_prompt_is_text_and_nothing_else(page: Chrome) -> None:
    assert page.title == "How the answer came about"
    assert page.find_elements(By.CSS_SELECTOR, "#prompt img, #prompt script") == []
    assert HOSTILE in page.find_element(By.ID, "prompt").text


def test_all_of_the_prompt_can_be_read(page: Chrome, answer: Answer) -> None:
    shown = [passage.text for passage in page.find_elements(By.CSS_SELECTOR, "#prompt .passage")]
    words = " ".join(" ".join(shown).split())
    assert words == " ".join(traced(answer).text.split())


def test_recomputed_tokens_stand_out(page: Chrome, answer: Answer) -> None:
    passages = traced(answer).passages()
    runs = [run for p in passages if p.chunk for run in p.runs if run.fate == "recomputed"]
    marks = page.find_elements(By.CSS_SELECTOR, ".chunk mark")
    assert [mark.get_property("textContent") for mark in marks] == [run.text for run in runs]
    assert {colour(mark) for mark in marks} == {"rgba(255, 209, 102, 1)"}
    assert all(m.is_displayed() and m.size["width"] > 0 for m in marks if m.text.strip())
    reused = page.find_elements(By.CSS_SELECTOR, ".chunk .reused")
    assert len(reused) > 0
    assert {colour(run) for run in reused} == {"rgba(0, 0, 0, 0)"}


def test_a_chunk_shows_what_it_was_fused_behind_when_asked(page: Chrome, answer: Answer) -> None:
    cards = page.find_elements(By.CSS_SELECTOR, "article.chunk")
    behind = traced(answer).fused_behind()
    assert (len(cards), len(behind)) == (4, 3)
    first, *others = cards  # nothing stands before the first: it is isolated
    assert first.get_attribute("data-chunk") not in behind
    assert not first.find_elements(By.CSS_SELECTOR, "details li")
    for card in others:
        neighbours = behind[str(card.get_attribute("data-chunk"))]
        items = card.find_elements(By.CSS_SELECTOR, "details li")
        assert len(items) == len(neighbours) > 0
        assert not any(item.is_displayed() for item in items)
        card.find_element(By.TAG_NAME, "summary").click()
        for item, neighbour in zip(items, neighbours, strict=True):
            assert item.is_displayed()
            assert neighbour.text[:40] in item.text


def test_the_time_is_a_bar_of_its_parts(page: Chrome, answer: Answer) -> None:
    times = {name: ms for name, ms in asdict(answer.ttft).items() if ms > 0}
    assert f"{answer.ttft.total:,.1f} ms" in page.find_element(By.CSS_SELECTOR, "#ttft h2").text
    assert_bar(page, "#ttft", times)
    told = page.find_element(By.CSS_SELECTOR, "#ttft .legend").text
    assert all(f"{name} {ms:,.1f} ms" in told for name, ms in times.items())


def test_so_are_the_tokens(page: Chrome, answer: Answer) -> None:
    usage = answer.usage
    counts = {
        "reused": usage.reused_tokens,
        "recomputed": usage.recomputed_tokens,
        "fresh": usage.fresh_tokens,
    }
    assert_bar(page, "#tokens", counts)
    told = page.find_element(By.CSS_SELECTOR, "#tokens .legend").text
    assert all(f"{name} {count:,}" in told for name, count in counts.items())


def assert_bar(page: Chrome, section: str, amounts: dict[str, float] | dict[str, int]) -> None:
    """One line, filled from end to end, each part as wide as its share and of its own colour."""
    bar = page.find_element(By.CSS_SELECTOR, f"{section} .bar")
    parts = bar.find_elements(By.TAG_NAME, "div")
    assert [str(part.get_attribute("class")).split()[0] for part in parts] == list(amounts)
    whole = box(page, bar)
    left = whole["left"]
    for part, amount in zip(parts, amounts.values(), strict=True):
        rect = box(page, part)
        assert (rect["top"], rect["bottom"]) == (whole["top"], whole["bottom"])
        assert rect["left"] == pytest.approx(left, abs=0.1)
        share = amount / sum(amounts.values()) * whole["width"]
        # Parts too narrow to be seen are two pixels wide, and the others give way.
        assert rect["width"] == pytest.approx(max(share, 2), abs=2 * len(amounts))
        left = rect["right"]
    assert left == pytest.approx(whole["right"], abs=0.5)
    assert len({colour(part) for part in parts} - {"rgba(0, 0, 0, 0)"}) == len(parts)


def box(page: Chrome, element: WebElement) -> dict[str, float]:
    """Where an element is, in fractions of pixels."""
    found: dict[str, float] = page.execute_script(
        "return arguments[0].getBoundingClientRect().toJSON()", element
    )
    return found


def test_nothing_is_cut_off_on_a_phone(page: Chrome) -> None:
    # A window can't be made as narrow as that, but a page can be told that it is.
    size = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        width = page.execute_script("return document.documentElement.scrollWidth")
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert width == 360


def test_a_notebook_shows_it_in_a_frame(browser: Chrome, answer: Answer, tmp_path: Path) -> None:
    cell = f"<!doctype html><style>mark {{ display: none }}</style>{answer.explain()._repr_html_()}"
    (tmp_path / "cell.html").write_text(cell, encoding="utf-8")
    browser.get((tmp_path / "cell.html").as_uri())
    browser.switch_to.frame(browser.find_element(By.TAG_NAME, "iframe"))
    assert len(browser.find_elements(By.CSS_SELECTOR, "article.chunk")) == 4
    marks = browser.find_elements(By.CSS_SELECTOR, "mark")
    assert any(mark.is_displayed() for mark in marks)  # the notebook's styles stay outside
