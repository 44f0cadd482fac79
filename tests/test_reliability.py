"""docs/reliability.md shows what the soaks found, no more and no less."""

from __future__ import annotations

from pathlib import Path

from tests.long.rows import PAGE, page, rows


def test_the_page_shows_the_rows_that_were_recorded() -> None:
    text = PAGE.read_text()
    assert page(text) == text


def test_each_row_names_a_test_that_is_there() -> None:
    for row in rows():
        file, _, name = row.test.partition("::")
        assert f"def {name.partition('[')[0]}(" in Path(file).read_text(), row
