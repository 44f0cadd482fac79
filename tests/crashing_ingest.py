"""Ingests that are killed at random moments, each in a process of its own.

    python -m tests.crashing_ingest STORE MODEL ROUNDS

Forks, so that torch is imported once. Prints how many operations were done, and after how many
kills the store wasn't what it should be; what was wrong is on stderr.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest.mock import patch

import chromadb  # noqa: F401 - so that it is imported once
import torch

from fusionrag_integrations import AnswerSettings, Document, FusionEngine
from fusionrag_integrations.documents.chunk_record import ChunkRecord
from fusionrag_integrations.documents.chunking import Chunker
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.store.verify import find_damage
from tests.damage import index_checked_here

NAMES = ("anglesey", "bute", "canna", "danna")
LONGEST = 0.6  # seconds until a process is killed
Versions = dict[str, int | None]


def document(name: str, version: int) -> Document:
    """Two chunks, which both tell the version; the first is the same in some versions."""
    parts = [
        f"The isle of {name} has {version // 2} harbours, and boats that wait for better weather "
        "at the quay below the old town's walls.",
        f"Its lighthouse shines for {version} hours a night, and keeps the fishers of {name} off "
        "the rocks that lie to the south of it.",
    ]
    return Document(name, "\n\n".join(parts))


def operation(number: int) -> Versions:
    """Which documents the operation of this number changes, to which version; None: deletes."""
    draw = random.Random(number)
    names = draw.sample(NAMES, draw.choice((1, 2)))
    gone = len(names) == 1 and draw.random() < 0.3
    return dict.fromkeys(names, None if gone else number)


def apply(engine: FusionEngine, change: Versions) -> None:
    gone = [name for name, version in change.items() if version is None]
    if gone:
        engine.delete(gone)
    else:
        engine.ingest([document(name, v) for name, v in change.items() if v is not None])


def forever(store: Path, model: CausalModel, number: int, told: Path) -> None:
    """Operations one after another, each told when it is done."""
    engine = FusionEngine.open(model, store, chunk_tokens=48)
    while True:
        apply(engine, operation(number))
        with told.open("a") as file:
            file.write(f"{number}\n")
        number += 1


def check(store: Path, model: CausalModel, before: Versions, change: Versions) -> None:
    """Each document is as it was, or as the operation that was cut off wanted it, and whole."""
    engine = FusionEngine.open(model, store, chunk_tokens=48)
    records = engine.store.catalog.chunks.records(engine.store.catalog.chunks.ids())
    # What was being made may be missing, with its document's manifest; nothing else, and nothing
    # is damaged.
    new = {r.isolated_key for r in records.values() if r.chunk.document_id in change}
    for problem in find_damage(store):
        unfinished = problem.error == "KVMissingError" and problem.path.stem in new
        assert problem.area == "documents" or unfinished, problem
    found = versions_of(list(records.values()))
    for name in NAMES:
        assert found[name] in (before[name], change.get(name, before[name])), (name, found[name])
    for record in records.values():
        text = record.chunk.text
        answer = engine.answer(f"{text}\n\nHow many?", AnswerSettings(max_tokens=1))
        assert answer.usage.prompt_tokens > 0
    apply(engine, change)  # what was cut off can be done again, and leaves nothing behind
    expected = before | change
    records = engine.store.catalog.chunks.records(engine.store.catalog.chunks.ids())
    assert versions_of(list(records.values())) == expected
    assert list(find_damage(store)) == []
    live = engine.store.catalog.kv.live_keys()
    assert {path.stem for path in (store / "kv").glob("??/*")} == live
    for record in records.values():
        answer = engine.answer(f"{record.chunk.text}\n\nHow many?", AnswerSettings(max_tokens=1))
        assert answer.missed_chunks == 0, record
        assert answer.fused_chunks + answer.isolated_chunks >= 1, record
    engine.store.close()


def versions_of(records: list[ChunkRecord]) -> Versions:
    found: Versions = dict.fromkeys(NAMES)
    for name in NAMES:
        texts = [r.chunk.text for r in records if r.chunk.document_id == name]
        if texts:
            version = int(texts[-1].split(" hours")[0].rsplit(" ", 1)[-1])
            assert "\n\n".join(texts) == document(name, version).text, texts
            found[name] = version
    return found


def forked(work: Callable[[], object]) -> int:
    """Run in a process of its own; its number."""
    process = os.fork()
    if not process:
        code = 1
        try:
            work()
            code = 0
        except BaseException:  # noqa: BLE001 the parent's code isn't this process's to run
            traceback.print_exc()
        finally:
            os._exit(code)
    return process


def killed(work: Callable[[], object], delay: float) -> None:
    """Run in a process of its own, which is killed after so many seconds."""
    process = forked(work)
    time.sleep(delay)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def succeeds(work: Callable[[], object]) -> bool:
    """Run in a process of its own: whether it ends without an error."""
    return os.waitpid(forked(work), 0)[1] == 0


def main(store: Path, model_dir: Path, rounds: int) -> None:
    torch.set_num_threads(1)  # other threads don't live on in a fork
    model = CausalModel.load(model_dir)
    Chunker(48).split(document(NAMES[0], 0))  # reads the table of tokens
    told = store.with_suffix(".told")
    told.touch()
    versions: Versions = dict.fromkeys(NAMES)
    done = wrong = 0
    for seed in range(rounds):
        delay = random.Random(seed).uniform(0.0, LONGEST)
        killed(partial(forever, store, model, done + 1, told), delay)
        numbers = [int(line) for line in told.read_text().splitlines()]
        for number in numbers[done:]:
            versions |= operation(number)
        done = len(numbers)
        change = operation(done + 1)
        if succeeds(partial(check, store, model, versions, change)):
            versions |= change
        else:
            sys.stderr.write(f"Killed {delay:.3f} s after operation {done + 1} began.\n")
            wrong += 1
            shutil.rmtree(store, ignore_errors=True)  # the next ones begin anew
            versions = dict.fromkeys(NAMES)
        done += 1
        with told.open("a") as file:
            file.write(f"{done}\n")
    sys.stdout.write(f"{done} {wrong}\n")


if __name__ == "__main__":
    with patch("fusionrag_integrations.store.verify.index_faults", index_checked_here):
        main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
