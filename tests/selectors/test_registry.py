"""Selectors by name, and what they all keep to: the ratio, the prompt, and asking for no more."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from fusionrag_integrations.errors import InvalidInputError, UnknownSelectorError
from fusionrag_integrations.prompt.assembled import AssembledPrompt
from fusionrag_integrations.selectors import make_selector, selector_names
from fusionrag_integrations.selectors.scoring import TopScores
from fusionrag_integrations.store.calibration import Calibration
from tests.selectors.made import FakeProbe, known, prompt_with, traced

NAMES = (
    *("none", "all", "random", "cacheblend", "cache_craft", "epic"),
    *("fusionrag_paper", "prophetkv", "infoflow", "fusionrag"),
)
BUDGETED = NAMES[2:]
A, B = known("a", 10, traced([0.1] * 10, [0.2] * 10)), known("b", 9)
PROMPT = prompt_with([(A, 0, 2, 10), (B, 0, 14, 7), (B, 8, 22, 1), (A, 1, 24, 3)], 30)  # 21 tokens


class Untouchable:
    """A probe that may not be asked for anything."""

    def __getattr__(self, name: str) -> object:
        raise AssertionError(f"asked for {name}")


def probe() -> FakeProbe:
    draw = torch.Generator().manual_seed(0)
    return FakeProbe(PROMPT, deviation=torch.rand(21, generator=draw))


def test_names() -> None:
    assert selector_names() == NAMES


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UnknownSelectorError) as error:
        make_selector("best", 0.1)
    assert "'best'" in str(error.value)
    assert ", ".join(NAMES) in str(error.value)


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_none_and_all_know_no_ratio(ratio: float) -> None:
    assert make_selector("none", ratio).select(PROMPT, Untouchable()).positions == ()
    everything = (*range(2, 12), *range(14, 21), 22, *range(24, 27))
    assert make_selector("all", ratio).select(PROMPT, Untouchable()).positions == everything


@pytest.mark.parametrize("name", BUDGETED)
@pytest.mark.parametrize("ratio", ["0", "0.04", "0.15", "0.334", "0.5", "0.96", "1"])
def test_the_ratio_is_never_exceeded(name: str, ratio: str) -> None:
    count = math.floor(Fraction(ratio) * 21)
    positions = make_selector(name, float(ratio)).select(PROMPT, probe()).positions
    assert len(positions) == count
    assert set(positions) <= set(PROMPT.chunk_positions)
    assert list(positions) == sorted(set(positions))


@pytest.mark.parametrize("name", BUDGETED)
@pytest.mark.parametrize("ratio", [0.0, 0.04, 1.0])
def test_where_nothing_is_to_be_decided_nothing_is_asked(name: str, ratio: float) -> None:
    count = len(make_selector(name, ratio).select(PROMPT, Untouchable()).positions)
    assert count == int(ratio) * 21


@pytest.mark.parametrize("name", BUDGETED)
@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_a_prompt_without_chunks(name: str, ratio: float) -> None:
    bare = AssembledPrompt((1, 2, 3), (), (0, 3))
    assert make_selector(name, ratio).select(bare, Untouchable()).positions == ()


def test_only_our_own_selector_is_calibrated() -> None:
    """Others ask the same layers with a calibration as without."""
    calibration = Calibration(layers=(0, 5))
    asked = {}
    for name in BUDGETED:
        plain, calibrated = probe(), probe()
        make_selector(name, 0.3).select(PROMPT, plain)
        make_selector(name, 0.3, calibration).select(PROMPT, calibrated)
        asked[name] = plain.asked, calibrated.asked
    assert asked.pop("fusionrag") == ([(0, 1, 2, 3, 4, 5)], [(0, 5)])
    assert all(plain == calibrated for plain, calibrated in asked.values())


def test_top_scores_takes_the_highest_of_any_sign() -> None:
    scores = [float("-inf"), -5.0, 3.0, 0.0, 7.0, *[-9.0] * 15, -1.0]
    selector = TopScores(4.9 / 21, lambda prompt, probe: torch.tensor(scores))
    assert selector.select(PROMPT, Untouchable()).positions == (4, 5, 6, 26)


def test_runs_of_one_placed_chunk_belong_together() -> None:
    c = known("c", 30)
    runs = [
        *[(c, 0, 2, 4), (c, 5, 7, 3), (c, 8, 12, 5)],  # one chunk: a token less, two more
        *[(c, 0, 20, 30), (c, 0, 50, 30)],  # twice more, each whole
        *[(A, 0, 80, 10), (c, 12, 90, 3)],  # again, cut, behind another chunk
        *[(c, 11, 93, 5)],  # and again: its first token was there already
    ]
    found = prompt_with(runs, 110).occurrences
    starts = [[span.start for span in spans] for spans in found]
    assert starts == [[2, 7, 12], [20], [50], [80], [90], [93]]


@pytest.mark.parametrize(
    "settings",
    [
        {"layers": ()},
        {"layers": (3, 2)},
        {"layers": (2, 2)},
        {"layers": (1,), "sensitivity": -0.1},
    ],
)
def test_a_calibration_that_cannot_be(settings: dict) -> None:
    with pytest.raises(InvalidInputError):
        Calibration(**settings)
