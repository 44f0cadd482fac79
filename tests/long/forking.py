"""Forks at random moments, while other threads are at work.

    python -m tests.long.forking STORE MODEL FORKS

Prints JSON: what the children said, by how often they did, and what went wrong.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from fusionrag_integrations import AnswerSettings, FusionEngine
from fusionrag_integrations.errors import FusionRAGError, StoreError
from fusionrag_integrations.execution.hf.model import CausalModel
from tests.conftest import town
from tests.processes import in_child

SHORT = AnswerSettings(max_tokens=4)
PROMPT = f"{town(0).text}\n\n{town(1).text}\n\nWhere is the fox?"
TEXT = town(1).text.split("\n\n")[1]
NO_CHROMA = "Chroma can't be used in this process"


@contextmanager
def at_work(*works: Callable[[], object]) -> Iterator[list[str]]:
    """Other threads do these over and over; gives the errors that they met."""
    end, errors = threading.Event(), list[str]()

    def go_on(work: Callable[[], object]) -> None:
        while not end.is_set():
            try:
                work()
            except FusionRAGError as error:
                errors.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=go_on, args=[work]) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield errors
    finally:
        end.set()
        for thread in threads:
            thread.join()


def make(model: CausalModel, store: Path) -> None:
    with FusionEngine.open(model, store, chunk_tokens=48) as engine:
        engine.ingest([town(0), town(1)])


def child(engine: FusionEngine, right: str) -> str:
    answer = engine.answer(PROMPT, SHORT)
    if answer.text != right or not answer.usage.reused_tokens:
        return f"answered {answer.text!r} in the place of {right!r}"
    (hit,) = engine.store.search(TEXT, 1)
    if hit.chunk.text != TEXT:
        return f"found {hit.chunk.text!r}"
    try:
        found = engine.store.search(TEXT, 1, where={"title": hit.chunk.title})
    except StoreError as error:
        return "searches" if str(error).startswith(NO_CHROMA) else f"{error}"
    return "filters" if found == [hit] else f"found {found} by a filter"


def fork(engine: FusionEngine, right: str, times: int) -> Counter[str]:
    chance, seen = random.Random(0), Counter[str]()
    for _ in range(times):
        time.sleep(chance.uniform(0.0, 0.1))
        try:
            seen[in_child(lambda: child(engine, right))] += 1
        except TimeoutError as error:
            seen[f"hung: {error}"] += 1
    return seen


def main(store: Path, model_dir: Path, forks: int) -> None:
    torch.set_num_threads(1)
    model = CausalModel.load(model_dir)
    in_child(lambda: make(model, store))  # so that nothing has been searched here yet
    engine = FusionEngine.open(model, store)
    records = engine.store.catalog.chunks.records(engine.store.catalog.chunks.ids()).values()
    handles = [record.handle for record in records]
    right = engine.answer(PROMPT, SHORT).text

    def ask() -> None:
        if engine.answer(PROMPT, SHORT).text != right:
            raise FusionRAGError("The parent answered otherwise.")

    def search() -> None:
        (hit,) = engine.store.search(TEXT, 1)
        if hit.chunk.text != TEXT:
            raise FusionRAGError("The parent found something else.")

    def change() -> None:
        engine.ingest([town(9)])
        engine.delete(["town-9"])

    with at_work(ask, ask, lambda: engine.prefetch(handles)) as errors:
        first = fork(engine, right, forks // 2)
    search()  # from here on children can't filter
    with at_work(ask, search, change) as more:
        second = fork(engine, right, forks - forks // 2)
    shown = {"only answers": first, "searches": second, "errors": errors + more}
    sys.stdout.write(json.dumps(shown))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
