"""One file of a store damaged, whichever it is: used, checked, repaired, and ingested into."""

from __future__ import annotations

import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import NoReturn

import pytest

from fusionrag_integrations import AnswerSettings, FusionEngine
from fusionrag_integrations.errors import FusionRAGError
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.prompt import question_prompt
from fusionrag_integrations.store.calibration import Calibration, write_calibration
from fusionrag_integrations.store.repair import repair
from fusionrag_integrations.store.verify import find_damage
from tests.conftest import town
from tests.damage import CONTENT, KINDS, copied, deleted, flipped, index_checked_here, kept

Report = Callable[[str, str, object, object], None]

TOWNS = [town(number) for number in range(8)]
QUESTION = "Which town has house 7?"
LONGEST = 120  # seconds until something counts as hanging
FILES = {
    "a KV record": "kv/??/*",
    "catalog.sqlite": "catalog.sqlite",
    "a document's file": "documents/??/*.json",
    "store.json": "store.json",
    "both store.json": "**/store.json",
    "revision.json": "documents/revision.json",
    "a correction": "corrections/[0-9a-f]*",
    "calibration.json": "calibration.json",
    "the unfinished mark": "unfinished",
}
ALL_OF_THEM = {"both store.json"}
SPARED = {"a KV record", "a correction"}  # answers do without, as where the file was never there
UNNAMED = {"a correction": deleted}  # a delete of documents leaves no more, which is no damage


@pytest.fixture(scope="module")
def model(model_dir: Path) -> CausalModel:
    return CausalModel.load(model_dir)


def calibrate(engine: FusionEngine) -> None:
    file, signature = engine.store.path / "calibration.json", engine.store.catalog.info.signature
    write_calibration(file, signature, Calibration((0, 1, 2)), {})


@pytest.fixture(scope="module")
def made(model: CausalModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "store"
    with FusionEngine.open(model, path, chunk_tokens=48) as engine:
        engine.ingest(TOWNS)
        calibrate(engine)
    (path / "unfinished").touch()
    return path


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusionrag_integrations.store.verify.index_faults", index_checked_here)


@contextmanager
def limited() -> Iterator[None]:
    def ended(number: int, frame: FrameType | None) -> NoReturn:
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, ended)
    signal.alarm(LONGEST)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def used(model: CausalModel, store: Path) -> tuple[object, ...]:
    """What a store finds and answers, and whether something stored was of no use for it."""
    with FusionEngine.open(model, store) as engine:
        hits = [(hit.chunk, round(hit.score, 4)) for hit in engine.store.search(QUESTION, 4)]
        prompt = question_prompt([chunk.text for chunk, _ in hits], QUESTION)
        settings = AnswerSettings(max_tokens=4)
        answer = engine.answer(prompt, settings)
        whole = engine.answer(prompt, replace(settings, selector="all", ratio=1.0))
        missed = bool(answer.fallbacks or answer.missed_chunks)
        return hits, answer.usage.prompt_tokens, whole.token_ids, missed, answer.token_ids


def without(model: CausalModel, store: Path, file: Path) -> tuple[object, ...]:
    """What a store finds and answers without a file, which is put back."""
    content = file.read_bytes()
    file.unlink()
    found = used(model, store)
    file.write_bytes(content)
    return found


@pytest.mark.parametrize("what", FILES)
def test_a_file(what: str, model: CausalModel, made: Path, tmp_path: Path, report: Report) -> None:
    chance, counts, faults = random.Random(0), Counter[str](), list[str]()
    before, intact = used(model, made), kept(made)
    for damage in (*KINDS, *CONTENT, flipped):
        store = copied(made, tmp_path / "store")
        candidates = sorted(store.glob(FILES[what]))
        assert candidates
        damaged = candidates if what in ALL_OF_THEM else [chance.choice(candidates)]
        spared = without(model, store, *damaged) if what in SPARED else None
        for file in damaged:
            damage(file, chance)
        try:
            with limited():
                named = damage is not UNNAMED.get(what)
                wrong = outcome(model, store, before, spared, named, intact, counts)
        except Exception as error:  # noqa: BLE001 whatever it is, it is reported
            counts["raw"] += 1
            wrong = f"raised {type(error).__name__}: {error}"
        if wrong:
            faults.append(f"{damage.__name__}: {wrong}")
        counts["done"] += 1
        for left in tmp_path.glob("elsewhere*"):
            left.unlink()
    shutil.rmtree(tmp_path / "store")
    report(
        "Damage",
        f"Bits flipped, noise, cut, emptied, deleted, a directory, a pipe or a link in the place "
        f"of: {what}",
        f"{counts['done']} damages: {counts['refused']} made a named error of the use, "
        f"{counts['missed']} a counted miss, {counts['same']} had no effect on it; `verify` named "
        f"{counts['found']}",
        f"{counts['raw']} raw errors or hangs, {counts['wrong']} wrong answers, {counts['unseen']} "
        f"unseen by `verify`, {counts['lost']} stores that weren't as before after `repair` and an "
        "ingest",
    )
    assert not faults, "\n".join(faults)


def outcome(
    model: CausalModel,
    store: Path,
    before: tuple[object, ...],
    spared: tuple[object, ...] | None,
    named: bool,
    intact: tuple[object, ...],
    counts: Counter[str],
) -> str:
    """What is wrong with how a damaged store is used, checked and repaired; else nothing.

    spared: what it finds and answers where it tells of a miss, if that is known. named: whether
    `verify` must find the damage.
    """
    try:
        after = used(model, store)
    except FusionRAGError:
        result = "refused"
    else:
        missed = after[3] and after[:3] == before[:3] and spared in (after, None)
        result = "same" if after == before else "missed" if missed else "wrong"
    counts[result] += 1
    found = list(find_damage(store))
    counts["found"] += bool(found)
    if named and not found and result != "same":
        counts["unseen"] += 1
        return f"{result}, and not found"
    problems = list(repair(store))
    try:
        with FusionEngine.open(model, store, chunk_tokens=48) as engine:
            engine.ingest(TOWNS)
            if not (store / "calibration.json").exists():
                calibrate(engine)  # which nothing in the store repeats
        again = used(model, store)
    except FusionRAGError as error:
        counts["lost"] += 1
        return f"{result}, found {found}, repaired {problems}, refused: {error}"
    if again != before or kept(store) != intact or list(find_damage(store)):
        counts["lost"] += 1
        return f"{result}, found {found}, repaired {problems}, not as before"
    return f"{result}: another answer" if result == "wrong" else ""
