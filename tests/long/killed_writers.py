"""Writers of a store at a URL killed at random moments, each in a process of its own.

    python -m tests.long.killed_writers DIRECTORY MODEL ROUNDS

Forks, so that torch is imported once. After each kill the newest version must be whole, and hold
the documents from before the operation that was cut off or those after it; every tenth time its
answer from isolated KV, which depends on no history, must be that of a store in a directory. Old
versions are collected on the way. Prints how many times that was wrong, how many kills came before
a version was out, and how long a run takes; what was wrong is on stderr.
"""

from __future__ import annotations

import json
import os
import random
import sys
from functools import partial
from pathlib import Path
from time import perf_counter

import torch

from fusionrag_integrations import Document, FusionEngine, Store
from fusionrag_integrations.documents.chunking import Chunker
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.store.published.collecting import collect
from fusionrag_integrations.store.published.verifying import find_damage_at
from tests.conftest import document_ids, town
from tests.crashing_ingest import killed, succeeds
from tests.store.published.sharing import ask, expire, same

NAMES = 6
Ids = frozenset[str]


def documents(ids: Ids) -> list[Document]:
    return [town(int(name.removeprefix("town-"))) for name in sorted(ids)]


def write(model: CausalModel, url: str, ids: Ids) -> None:
    """Make these the store's documents."""
    with FusionEngine.open(model, url, chunk_tokens=48) as engine:
        engine.ingest(documents(ids), delete_others=True)


def check(model: CausalModel, url: str, allowed: tuple[Ids, Ids], told: Path) -> None:
    """In a process of its own; writes which documents the newest version has."""
    assert list(find_damage_at(url)) == []
    with Store.open(url) as store:
        ids = document_ids(store.catalog)
        assert frozenset(ids) in allowed, ids
        told.write_text(json.dumps(ids))


def compare(model: CausalModel, url: str, ids: Ids, directory: Path) -> None:
    write(model, str(directory), ids)
    with (
        FusionEngine.open(model, url, chunk_tokens=48) as shared,
        FusionEngine.open(model, directory, chunk_tokens=48) as alone,
    ):
        assert same(ask(shared, kv="isolated"), ask(alone, kv="isolated"))


def main(directory: Path, model_dir: Path, times: int) -> None:
    torch.set_num_threads(1)  # other threads don't live on in a fork
    os.environ["FUSIONRAG_CACHE"] = str(directory / "cache")
    model = CausalModel.load(model_dir)
    Chunker(48).split(town(0))  # reads the table of tokens
    url, told = f"file://{directory}/shared", directory / "told"
    every = frozenset(f"town-{number}" for number in range(NAMES))
    started = perf_counter()
    assert succeeds(partial(write, model, url, every))
    longest = perf_counter() - started
    before, wrong, cut = every, 0, 0
    for number in range(times):
        chance = random.Random(number)
        after = frozenset(chance.sample(sorted(every), chance.randint(2, NAMES)))
        killed(partial(write, model, url, after), chance.uniform(0.0, longest))
        expire(url)
        if not succeeds(partial(check, model, url, (before, after), told)):
            sys.stderr.write(f"Wrong after kill {number}.\n")
            wrong += 1
            continue
        found = frozenset(json.loads(told.read_text()))
        cut += found == before != after
        before = found
        if number % 10 == 9:
            where = directory / f"alone-{number}"
            if not succeeds(partial(compare, model, url, before, where)):
                sys.stderr.write(f"Another answer after kill {number}.\n")
                wrong += 1
        if number % 4 == 3:
            collect(url, grace=0)
    if not (succeeds(partial(write, model, url, every)) and not list(find_damage_at(url))):
        wrong += 1
    sys.stdout.write(f"{wrong} {cut} {longest:.2f}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
