"""What can be said of an entity, and how it is asked: `<subject> <verb> <answer>.`

A question repeats the statement's words in their order: `<subject> <verb> <ask>?`
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fusionrag_integrations.demo.names import EntityKind

AnswerKind = Literal["person", "place", "company", "goods", "instrument", "animal", "material"]

ASK: dict[AnswerKind, tuple[str, ...]] = {
    "person": ("whom", "which person"),
    "place": ("which city", "which place"),
    "company": ("which company", "which firm"),
    "goods": ("what", "which goods"),
    "instrument": ("which instrument", "what"),
    "animal": ("what", "which animal"),
    "material": ("what", "which material"),
}

WORDS: dict[AnswerKind, tuple[tuple[str, ...], ...]] = {
    # Answers that aren't names: one word from each column.
    "goods": (
        ("copper", "silver", "wooden", "painted", "folding", "woollen", "glass", "clay", "leather"),
        (
            "lamps",
            "clocks",
            "chairs",
            "kites",
            "drums",
            "boots",
            "maps",
            "masks",
            "bowls",
            "knives",
        ),
    ),
    "instrument": (("violin", "flute", "cello", "trumpet", "banjo", "organ", "piano", "oboe"),),
    "animal": (("parrot", "rabbit", "ferret", "tortoise", "goat", "falcon", "hedgehog", "pony"),),
    "material": (("brass", "oak", "marble", "ivory", "iron", "crystal", "jade", "amber"),),
}


@dataclass(frozen=True, slots=True)
class Relation:
    """One wording of one fact. Held-out wordings use words that others use, in new company."""

    subject: EntityKind
    verb: str
    answer: AnswerKind
    held_out: bool = False


def _all(subject: EntityKind, answer: AnswerKind, verbs: str, held_out: str) -> list[Relation]:
    seen = [Relation(subject, v.strip(), answer) for v in verbs.split("|")]
    return seen + [Relation(subject, v.strip(), answer, True) for v in held_out.split("|") if v]


RELATIONS: tuple[Relation, ...] = (
    *_all(
        "person",
        "place",
        "was born in | grew up in | lives in | got married in | went to school in | "
        "opened a shop in | spent the war in | owns a house in | learned to sail in | "
        "moved from a farm to | was made mayor of",
        "was married in | opened a school in | owns a farm in",
    ),
    *_all(
        "person",
        "company",
        "works for | was hired by | sold a patent to | once managed",
        "once worked for",
    ),
    *_all(
        "person",
        "person",
        "is married to | learned the trade from | shares a house with | was taught by | "
        "wrote a book with",
        "wrote a letter to",
    ),
    *_all("person", "goods", "collects | repairs | exports | inherited a box of", "sold a box of"),
    *_all("person", "instrument", "plays the | teaches the", "learned to play the"),
    *_all("person", "animal", "keeps a pet", ""),
    *_all(
        "company",
        "person",
        "was founded by | is owned by | is managed by | was bought by | was named by",
        "was managed by",
    ),
    *_all(
        "company",
        "place",
        "has its head office in | was set up in | runs a large plant in | ships its goods to | "
        "keeps its archive in",
        "has a large shop in",
    ),
    *_all("company", "goods", "makes | is known for its | once sold", "is known for selling"),
    *_all(
        "place",
        "person",
        "has a mayor named | was first mapped by | was painted by",
        "was named by",
    ),
    *_all("place", "goods", "is famous for its | imports", "once made"),
    *_all("place", "company", "gets its power from | rents its harbour to", ""),
    *_all(
        "thing",
        "person",
        "was made by | was stolen by | was repaired by | was designed by",
        "was sold by",
    ),
    *_all("thing", "place", "is kept in | was found in | was first shown in", "was made in"),
    *_all("thing", "material", "is made of | has a base of", ""),
    *_all("thing", "company", "was insured by | was copied by", ""),
)

# A bridge joins `<A> <verb> <person>` and `<person> <verb> <answer>` into
# `<A> <verb> someone who <verb> <ask>?`
BRIDGE_WORD = "someone who"

FILLER_STARTS = (
    "In spring", "In summer", "That winter", "For many years", "After the flood", "On most days",
    "In those times", "Before the war", "Late in the evening", "Every other week",
)  # fmt: skip
FILLER_SCENES = (
    "the streets were quiet and the markets stayed open late",
    "people talked about the weather and the price of bread",
    "the road was often closed because of snow",
    "a small fair was held near the old bridge",
    "the newspapers carried long reports about the harvest",
    "the river rose and the fields stood under water",
    "children played behind the church until dark",
    "the trains ran slowly and the letters came late",
    "nobody paid much attention to such things",
    "the lights along the harbour burned all night",
)
FILLER_MENTIONS = {
    # Mentions never fit the pronoun of the document that they stand in.
    "place": ("visitors from {name} came by", "a letter arrived from {name}",
              "the road to {name} was repaired"),
    "company": ("a clerk of {name} asked for directions", "the wagons of {name} passed through"),
    "person": ("a neighbour called {name} told the story often",
               "a portrait of {name} hung on the wall"),
}  # fmt: skip
