"""Ingests and deletes on a disk of a few MB that is nearly full, each in a process of its own.

    python -m tests.long.full_disk MODEL DISK ELSEWHERE SIZES

DISK is a directory where this process may mount: `unshare --user --map-root-user --mount` lets it.
Prints a line of JSON for each number of KB that were free and each way: into a store that is there,
into a new one, by the command, and a delete. It tells what the first one said, what was wrong
afterwards, and how the process ended if not well.
"""

from __future__ import annotations

import faulthandler
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import chromadb  # noqa: F401 - so that it is imported once
import torch

from fusionrag_integrations import AnswerSettings, Document, FusionEngine
from fusionrag_integrations.documents.chunking import Chunker
from fusionrag_integrations.errors import FusionRAGError
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.store.verify import find_damage
from tests.conftest import town

PATIENCE = 150  # seconds until a process counts as hanging
BEFORE = [town(number) for number in range(2)]
NEW = [town(number) for number in range(2, 8)]
AS_STORED = AnswerSettings(max_tokens=4, corrected=False)  # corrections may be measured anew
LARGE = 64 << 10  # KB of the disk once room is made
COMMANDS = 4  # every so many sizes the command is tried, too


def mount(disk: Path, kilobytes: int, *options: str) -> None:
    settings = ",".join([*options, f"size={kilobytes}k"])
    subprocess.run(["mount", "-t", "tmpfs", "-o", settings, "none", disk], check=True)


def free_kilobytes(disk: Path) -> int:
    return shutil.disk_usage(disk).free >> 10


def answers(engine: FusionEngine, documents: list[Document]) -> list[str]:
    """What is answered over each document; its first chunk must be found and have KV."""
    said: list[str] = []
    for document in documents:
        answer = engine.answer(f"{document.text}\n\nWhere is the fox?", AS_STORED)
        found = engine.store.search(document.text.split("\n\n")[0], 1)
        said.append(f"{answer.text} {answer.missed_chunks} {found[0].chunk.document_id}")
    return said


def wrong(name: str, found: object, expected: object) -> Iterator[str]:
    if found != expected:
        yield f"{name}: {found} in the place of {expected}"


def made(model: CausalModel, store: Path) -> list[str]:
    with FusionEngine.open(model, store, chunk_tokens=48) as engine:
        engine.ingest(BEFORE)
        return answers(engine, BEFORE)


def made_without(model: CausalModel, base: Path, store: Path) -> list[str]:
    """A store with room where the first document is deleted: answers over the others."""
    shutil.copytree(base, store)
    with FusionEngine.open(model, store) as engine:
        engine.delete([BEFORE[0].id])
        engine.ingest([])
        return answers(engine, BEFORE[1:])


def copied(base: Path, disk: Path, kilobytes: int) -> Path:
    """A copy of a store on the disk, with so much room left."""
    mount(disk, LARGE)
    store = shutil.copytree(base, disk / "store")
    used = LARGE - free_kilobytes(disk)
    mount(disk, used + kilobytes, "remount")
    return store


def filled(
    model: CausalModel, disk: Path, base: Path | None, expected: list[str], kilobytes: int
) -> dict[str, object]:
    """Ingest with so much room left, and once more with enough. base: what is there before."""
    store = disk / "store"
    if base is None:
        mount(disk, kilobytes)
    else:
        copied(base, disk, kilobytes)
    before = BEFORE if base is not None else []
    problems: list[str] = []
    said = "done"
    engine = None
    try:
        engine = FusionEngine.open(model, store, chunk_tokens=48)
        engine.ingest(NEW)
    except FusionRAGError as error:
        said = f"{type(error).__name__}: {error}"
    if engine is not None and before:
        problems += wrong("answers on a full disk", answers(engine, before), expected)
    elif before:
        problems.append(f"the store wasn't opened: {said}")
    mount(disk, LARGE, "remount")
    if engine is None:
        engine = FusionEngine.open(model, store, chunk_tokens=48)
    engine.ingest(NEW)
    problems += wrong("answers with room", answers(engine, before), expected)
    missed = [engine.answer(d.text, AS_STORED).missed_chunks for d in [*before, *NEW]]
    problems += wrong("missed chunks", sum(missed), 0)
    engine.close()
    problems += left(model, store, before, expected)
    return {"said": said, "problems": problems}


def left(
    model: CausalModel, store: Path, documents: list[Document], expected: list[str]
) -> Iterator[str]:
    """What is wrong with a store in the end. expected: what is answered over these documents."""
    yield from (f"{found.area}: {found.message}" for found in find_damage(store))
    records = {path.stem for path in (store / "kv").glob("??/*")}
    with FusionEngine.open(model, store) as again:
        yield from wrong("records", records, again.store.catalog.kv.live_keys())
        yield from wrong("answers anew", answers(again, documents), expected)


def deleted(
    model: CausalModel, disk: Path, base: Path, expected: list[str], kilobytes: int
) -> dict[str, object]:
    """Delete a document with so much room left, and once more with enough."""
    store = copied(base, disk, kilobytes)
    said = "done"
    with FusionEngine.open(model, store) as engine:
        try:
            engine.delete([BEFORE[0].id])
        except FusionRAGError as error:
            said = f"{type(error).__name__}: {error}"
        mount(disk, LARGE, "remount")
        engine.delete([BEFORE[0].id])
        engine.ingest([])
    return {"said": said, "problems": list(left(model, store, BEFORE[1:], expected))}


def commanded(model_dir: Path, disk: Path, files: Path, kilobytes: int) -> dict[str, object]:
    """`fusionrag index` into a new store, and once more with enough room."""
    mount(disk, kilobytes)
    program = "from fusionrag_integrations.cli import main; main()"
    arguments = ["index", files, "--store", disk / "store", "--model", model_dir]
    command = [sys.executable, "-c", program, *map(str, arguments), "--chunk-tokens", "48"]
    said: list[str] = []
    problems: list[str] = []
    for expected in (1, 0):
        run = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        said += [line for line in run.stderr.splitlines() if line.startswith("error: ")]
        problems += wrong("exit status", run.returncode, expected)
        problems += wrong("tracebacks", run.stderr.count("Traceback"), 0)
        mount(disk, LARGE, "remount")
    problems += wrong("errors", len(said), 1)
    problems += (f"{found.area}: {found.message}" for found in find_damage(disk / "store"))
    return {"said": " ".join(said).removeprefix("error: "), "problems": problems}


def forked(work: Callable[[], object]) -> tuple[object, str]:
    """What a call gives in a process of its own, and how that ended; "" is well."""
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        faulthandler.dump_traceback_later(PATIENCE - 5)
        signal.alarm(PATIENCE)
        os.write(writing, json.dumps(work()).encode())  # what it raises ends this process
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as told:
        given = told.read()
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return json.loads(given) if given else None, f"exit status {status}" if status else ""


def main(model_dir: Path, disk: Path, elsewhere: Path, sizes: list[int]) -> None:
    torch.set_num_threads(1)  # other threads don't live on in a fork
    model = CausalModel.load(model_dir)
    Chunker(48).split(BEFORE[0])  # reads the table of tokens
    base, files = elsewhere / "base", elsewhere / "files"
    expected, ended = forked(partial(made, model, base))
    assert isinstance(expected, list), ended
    after_delete, ended = forked(partial(made_without, model, base, elsewhere / "without"))
    assert isinstance(after_delete, list), ended
    files.mkdir()
    for document in NEW:
        (files / f"{document.id}.txt").write_text(document.text)
    for size in sizes:
        ways = {
            "there": partial(filled, model, disk, base, expected, size),
            "new": partial(filled, model, disk, None, [], size),
            "delete": partial(deleted, model, disk, base, after_delete, size),
        }
        if size in sizes[::COMMANDS]:
            ways["command"] = partial(commanded, model_dir, disk, files, size)
        for way, work in ways.items():
            given, ended = forked(work)
            row = {"free": size, "way": way, "given": given, "ended": ended}
            sys.stdout.write(json.dumps(row) + "\n")
            sys.stdout.flush()
            subprocess.run(["umount", "--lazy", disk], check=False)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), [int(size) for size in sys.argv[4].split(",")])
