"""Repairs and `fusionrag index` killed at random moments, each in a process of its own.

    python -m tests.long.killed {repair,index} DIRECTORY MODEL ROUNDS

Forks, so that torch is imported once. Prints after how many kills a store wasn't what it should be
when the same was run again, and how many kills came before the end; what was wrong is on stderr.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from unittest.mock import patch

import torch

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.cli import main as command
from fusionrag_integrations.documents.chunking import Chunker
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.store.repair import repair
from fusionrag_integrations.store.verify import find_damage
from tests.conftest import town
from tests.crashing_ingest import killed, succeeds
from tests.damage import CONTENT, copied, index_checked_here, kept

TOWNS = [town(number) for number in range(4)]


def ingest(model: CausalModel, store: Path) -> None:
    with FusionEngine.open(model, store, chunk_tokens=48) as engine:
        engine.ingest(TOWNS)


def damage(store: Path, chance: random.Random) -> None:
    """Two to four files of a store, never both copies of the same."""
    copies = [store / "catalog.sqlite", chance.choice(sorted(store.glob("documents/??/*.json")))]
    others = [
        store / "store.json",
        store / "index" / "chroma.sqlite3",
        chance.choice(sorted(store.glob("kv/??/*"))),
    ]
    for file in [chance.choice(copies), *chance.sample(others, chance.randint(1, 3))]:
        chance.choice(CONTENT)(file, chance)


def same(store: Path, made: Path) -> None:
    """Nothing is damaged, and each part is what it is without a kill."""
    assert list(find_damage(store)) == []
    parts = ("catalog", "KV", "documents", "store.json")
    for part, found, expected in zip(parts, kept(store), kept(made), strict=True):
        assert found == expected, part


def repaired(model: CausalModel, made: Path, store: Path) -> None:
    """Run again, a repair that was killed ends; a further ingest makes all as it was."""
    list(repair(store))
    ingest(model, store)
    same(store, made)


def indexed(run: Callable[[], None], made: Path, store: Path) -> None:
    run()
    same(store, made)


def rounds(
    times: int, begin: Callable[[int], None], work: Callable[[], object], check: Callable[[], None]
) -> None:
    """`work` killed, then `check`, so often: by kills at any moment until it would have ended."""
    begin(0)
    started = perf_counter()
    succeeds(work)
    longest = perf_counter() - started
    wrong = 0
    for number in range(times):
        begin(number)
        killed(work, random.Random(number).uniform(0.0, longest))
        if not succeeds(check):
            sys.stderr.write(f"Wrong after kill {number}.\n")
            wrong += 1
    sys.stdout.write(f"{wrong} {longest:.2f}\n")


def main(what: str, directory: Path, model_dir: Path, times: int) -> None:
    torch.set_num_threads(1)  # other threads don't live on in a fork
    made, store = directory / "made", directory / "store"
    model = CausalModel.load(model_dir)
    Chunker(48).split(TOWNS[0])  # reads the table of tokens
    if what == "repair":
        assert succeeds(partial(ingest, model, made))

        def begin(number: int) -> None:
            copied(made, store)
            damage(store, random.Random(number))

        check = partial(repaired, model, made, store)
        rounds(times, begin, lambda: list(repair(store)), check)
        return
    texts = directory / "texts"
    texts.mkdir()
    for document in TOWNS:
        (texts / f"{document.id}.txt").write_text(document.text or "")

    def index(into: Path) -> None:
        given = [texts, "--store", into, "--model", model_dir, "--chunk-tokens", "48"]
        command(["index", *map(str, given)], standalone_mode=False)

    assert succeeds(partial(index, made))
    empty = directory / "empty"
    empty.mkdir()

    def prepare(number: int) -> None:
        copied(empty, store)

    run = partial(index, store)
    rounds(times, prepare, run, partial(indexed, run, made, store))


if __name__ == "__main__":
    with patch("fusionrag_integrations.store.verify.index_faults", index_checked_here):
        main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
