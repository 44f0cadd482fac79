"""The numbers that options take. All have bounds, so that none is beyond what computes with it."""

from __future__ import annotations

from collections.abc import Callable
from math import isnan
from typing import Any, TypeVar

import click

from fusionrag_integrations.support.inputs import INTEGERS

F = TypeVar("F", bound=Callable[..., Any])

MOST = 1_000_000
"""Of what can be counted: tokens, chunks, questions, calls."""


class Number(click.FloatRange):
    """A number in a range; what is not a number is in none."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number: float = super().convert(value, param, ctx)
        if isnan(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number


def count(least: int = 1) -> click.IntRange:
    """How many there are of something."""
    return click.IntRange(least, MOST)


SHARE = Number(0.0, 1.0)
SEED = click.IntRange(0, INTEGERS - 1)
MILLISECONDS = Number(0.0, float(MOST))


def shares(listed: str) -> list[float]:
    """Shares between commas."""
    return _each(SHARE, listed)


def counts(listed: str) -> list[int]:
    """How many there are of something, several times, between commas."""
    return _each(count(), listed)


def _each(kind: Any, listed: str) -> list[Any]:
    return [kind.convert(number.strip(), None, None) for number in listed.split(",")]


def ratios_option(default: str) -> Callable[[F], F]:
    """Of commands that compare several."""
    return click.option(
        "--ratios", type=shares, default=default, show_default=True, help="Shares to recompute."
    )
