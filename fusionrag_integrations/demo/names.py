"""Invented names. Each is put together from pieces, so that new names need no new words.

A fifth of all names, chosen by hash, is held out: training never sees them.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import Literal

EntityKind = Literal["person", "company", "place", "thing"]

_ONSETS = (
    "b", "br", "c", "ch", "d", "dr", "f", "g", "gr", "h", "j", "k", "l", "m", "n", "p", "r", "s",
    "st", "t", "tr", "v", "w", "z",
)  # fmt: skip
_VOWELS = (
    "a", "e", "i", "o", "u", "ai", "ea", "oa",
)  # fmt: skip
_CODAS = (
    "l", "n", "r", "s", "m", "nd", "rk", "sk", "th", "ld",
)  # fmt: skip


def _pieces(seed: str, count: int, pattern: str, taken: set[str]) -> tuple[str, ...]:
    """`count` new capitalised pieces; pattern letters: o onset, v vowel, c coda."""
    draw = random.Random(seed)
    parts = {"o": _ONSETS, "v": _VOWELS, "c": _CODAS}
    made: list[str] = []
    while len(made) < count:
        piece = "".join(draw.choice(parts[letter]) for letter in pattern).capitalize()
        if piece not in taken:
            taken.add(piece)
            made.append(piece)
    return tuple(made)


_taken: set[str] = set()
WOMEN = _pieces("women", 120, "ovov", _taken)
MEN = _pieces("men", 120, "ovoc", _taken)
SURNAMES = _pieces("surnames", 300, "ovcov", _taken)
PLACE_STEMS = _pieces("places", 240, "ovc", _taken)
PLACE_ENDINGS = ("vale", "ford", "mere", "wick", "burgh", "stead", "haven", "gate", "moor", "field")
COMPANY_STEMS = _pieces("companies", 200, "ovcv", _taken)
COMPANY_KINDS = ("Works", "Mills", "Foundry", "Brothers", "Press", "Motors", "Labs", "Traders")
THING_STEMS = _pieces("things", 160, "vcov", _taken)
THING_KINDS = ("Lantern", "Clock", "Bell", "Globe", "Mirror", "Compass", "Harp", "Vase")
del _taken


@dataclass(frozen=True, slots=True)
class Entity:
    """Somebody or something with a name. `pronoun` starts a sentence that refers back."""

    kind: EntityKind
    name: str
    pronoun: str


def is_held_out(name: str) -> bool:
    """Whether training must never see this name."""
    return hashlib.sha256(name.encode()).digest()[0] % 5 == 0


def draw_entity(draw: random.Random, kind: EntityKind, held_out: bool) -> Entity:
    """A random entity, from the names that training sees or from those held out."""
    while True:
        entity = _DRAW[kind](draw)
        if is_held_out(entity.name) == held_out:
            return entity


def _person(draw: random.Random) -> Entity:
    given, pronoun = draw.choice(((WOMEN, "She"), (MEN, "He")))
    return Entity("person", f"{draw.choice(given)} {draw.choice(SURNAMES)}", pronoun)


def _place(draw: random.Random) -> Entity:
    return Entity("place", draw.choice(PLACE_STEMS) + draw.choice(PLACE_ENDINGS), "It")


def _company(draw: random.Random) -> Entity:
    return Entity("company", f"{draw.choice(COMPANY_STEMS)} {draw.choice(COMPANY_KINDS)}", "It")


def _thing(draw: random.Random) -> Entity:
    return Entity("thing", f"{draw.choice(THING_STEMS)} {draw.choice(THING_KINDS)}", "It")


_DRAW = {"person": _person, "place": _place, "company": _company, "thing": _thing}
