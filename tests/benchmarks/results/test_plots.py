"""Figures: both files, readable, with their texts, and the same bytes each time."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.results.plots import Point, histogram_plot, lines_plot
from fusionrag_integrations.errors import InvalidInputError

matplotlib = pytest.importorskip("matplotlib")

NAMES = [f"strategy <{letter}>" for letter in "abcdefgh"]
BINS = ["0-25%", "25-50%", "50-75%", "75-100%"]
SVG = "{http://www.w3.org/2000/svg}"


def lines(stem: Path, *, names: list[str] = NAMES) -> None:
    series: dict[str, list[Point]] = {
        name: [(x, x * i, x * i - 0.1, x * i + 0.1) for x in (0.5, 0.05, 0.15)]
        for i, name in enumerate(names)
    }
    series["one point"] = [(0.15, 0.7, 0.6, 0.8)]
    levels = {"full attention": (0.7, 0.6, 0.8)}
    lines_plot(stem, series, levels, title="A & B", x_label="$ a question", y_label="F1")


def histogram(stem: Path, *, names: list[str] = NAMES) -> None:
    series = {name: [0.1 * i, 0.2, 0.3, 0.4] for i, name in enumerate(names)}
    histogram_plot(stem, series, BINS, title="A & B", x_label="place", y_label="$ a question")


EACH = pytest.mark.parametrize("draw", [lines, histogram])
Draw = Callable[[Path], None]


def texts(stem: Path) -> list[str]:
    root = ElementTree.parse(f"{stem}.svg").getroot()
    assert root.tag == f"{SVG}svg"
    return ["".join(element.itertext()) for element in root.iter(f"{SVG}text")]


@EACH
def test_both_files_are_readable(tmp_path: Path, draw: Draw) -> None:
    stem = tmp_path / "new" / "f1-0.15"  # the dot begins no ending
    draw(stem)
    assert {path.name for path in stem.parent.iterdir()} == {"f1-0.15.png", "f1-0.15.svg"}
    assert Path(f"{stem}.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert {"A & B", "$ a question", *NAMES} <= set(texts(stem))


@EACH
def test_the_same_data_give_the_same_bytes(tmp_path: Path, draw: Draw) -> None:
    draw(tmp_path / "one")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red"}):  # a user's settings
        draw(tmp_path / "two")
    for ending in ("png", "svg"):
        one, two = ((tmp_path / f"{name}.{ending}").read_bytes() for name in ("one", "two"))
        assert one == two
    assert b"<dc:date>" not in (tmp_path / "one.svg").read_bytes()


def test_no_global_state(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    lines(tmp_path / "a")
    assert dict(matplotlib.rcParams) == before


def test_single_points_and_levels_are_named(tmp_path: Path) -> None:
    lines(tmp_path / "a")
    assert {"one point", "full attention"} <= set(texts(tmp_path / "a"))


def test_each_column_of_panels_has_its_bins_once(tmp_path: Path) -> None:
    for count, columns in ((1, 1), (4, 4), (6, 4), (8, 4)):
        histogram(tmp_path / "a", names=NAMES[:count])
        shown = texts(tmp_path / "a")
        assert [shown.count(label) for label in BINS] == [columns] * len(BINS)
        assert set(NAMES[count:]).isdisjoint(shown)


def test_bad_input(tmp_path: Path) -> None:
    words = {"title": "", "x_label": "", "y_label": ""}
    with pytest.raises(InvalidInputError, match="a point each"):
        lines_plot(tmp_path / "a", {}, {}, **words)
    with pytest.raises(InvalidInputError, match="a point each"):
        lines_plot(tmp_path / "a", {"x": [(0, 0, 0, 0)], "y": []}, {}, **words)
    with pytest.raises(InvalidInputError, match="nothing to draw"):
        histogram_plot(tmp_path / "a", {}, BINS, **words)
    with pytest.raises(InvalidInputError, match="'x' has 1 shares for 4 bins"):
        histogram_plot(tmp_path / "a", {"x": [1.0]}, BINS, **words)
    assert not list(tmp_path.iterdir())


@EACH
def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, draw: Draw) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InvalidInputError, match="need matplotlib"):
        draw(tmp_path / "a")


def test_logarithmic_axes_are_labelled_in_plain_numbers(tmp_path: Path) -> None:
    series: dict[str, list[Point]] = {
        "one": [(x, y, y, y) for x, y in ((3.0, 20.0), (900.0, 400.0))]
    }
    lines_plot(tmp_path / "log", series, {}, title="A", x_label="x", y_label="y", log=True)
    shown = texts(tmp_path / "log")
    assert {"10", "100"} <= set(shown)
    assert not any("$" in text for text in shown)
