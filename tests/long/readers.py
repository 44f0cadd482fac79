"""One process that changes a store, and others that read it meanwhile.

    python -m tests.long.readers write STORE MODEL TOLD OPERATIONS
    python -m tests.long.readers read STORE MODEL TOLD EXPECTED SEED

TOLD is a file of what the writer begins and ends: each read must find a document as it was at some
moment of the read. EXPECTED is a file with what is answered over each document. A reader prints
JSON: how many reads there were, and which were wrong.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import torch

from fusionrag_integrations import Answer, AnswerSettings, FusionEngine
from fusionrag_integrations.errors import FusionRAGError
from tests.crashing_ingest import NAMES, apply, document, operation

END = "end of all"
ISOLATED = AnswerSettings(kv="isolated", max_tokens=4, corrected=False)
FUSED = AnswerSettings(max_tokens=4)
DENSE = AnswerSettings(kv="none", max_tokens=4)


def prompt_of(text: str) -> str:
    return f"{text}\n\nHow many?"


def versions(operations: int) -> set[tuple[str, int]]:
    """All documents that so many operations write."""
    changes = [operation(number) for number in range(operations)]
    return {(name, v) for change in changes for name, v in change.items() if v is not None}


def write(engine: FusionEngine, told: Path, operations: int) -> None:
    def tell(line: str) -> None:
        with told.open("a") as file:
            file.write(line + "\n")

    for number in range(operations):
        change = json.dumps(operation(number))
        tell(f"begin {change}")
        apply(engine, operation(number))
        tell(f"done {change}")
    tell(END)


class Reader:
    """Reads until the writer has ended."""

    def __init__(self, engine: FusionEngine, told: Path, expected: dict[str, list[str]]) -> None:
        self.engine, self.told, self.expected = engine, told, expected
        self.wrong: list[str] = []
        self.errors: list[str] = []
        self.searches = self.answers = 0

    def lines(self) -> list[str]:
        return self.told.read_text().splitlines()

    def allowed(self, name: str, before: list[str], after: list[str]) -> set[str | None]:
        """The texts that a document had between two looks at the file; None where it was gone."""
        now: int | None = None
        for line in before:
            kind, _, change = line.partition(" ")
            if kind == "done":
                now = json.loads(change).get(name, now)
        last = max((i for i, line in enumerate(before) if line.startswith("done")), default=-1)
        begun = [
            json.loads(line.partition(" ")[2])
            for line in after[last + 1 :]
            if line.startswith("begin")
        ]
        found = {now, *(change[name] for change in begun if name in change)}
        return {None if v is None else document(name, v).text for v in found}

    def read(self, chance: random.Random) -> None:
        name = chance.choice(NAMES)
        before = self.lines()
        hits = self.engine.store.search(f"isle of {name}", 20)
        allowed = self.allowed(name, before, self.lines())
        self.searches += 1
        chunks = sorted(
            {
                hit.chunk.index: hit.chunk.text for hit in hits if hit.chunk.document_id == name
            }.items()
        )
        found = "\n\n".join(text for _, text in chunks) or None
        if found not in allowed:
            self.wrong.append(f"search for {name}: {found!r}, not one of {allowed}")
        if found in self.expected:
            self.ask(found, chance)

    def ask(self, text: str, chance: random.Random) -> None:
        self.answers += 1
        if chance.random() < 0.5:
            answer = self.engine.answer(prompt_of(text), FUSED)
            right = answer.usage.completion_tokens > 0
        else:
            answer = self.engine.answer(prompt_of(text), ISOLATED)
            # Of a document that is being replaced one chunk may be known, which is no other text's.
            partly = answer.isolated_chunks == 1
            right = partly or answer.text in self.expected[text]
        if not right:
            self.wrong.append(f"{told_of(answer)} in the place of {self.expected[text]}")

    def run(self, seed: int) -> None:
        chance = random.Random(seed)
        while END not in self.lines()[-1:]:
            try:
                self.read(chance)
            except FusionRAGError as error:
                self.errors.append(f"{type(error).__name__}: {error}")


def told_of(answer: Answer) -> str:
    return f"{answer.text!r} with {answer.isolated_chunks} isolated, {answer.missed_chunks} missed"


def main(verb: str, store: str, model: str, told: Path, rest: str, seed: str = "0") -> None:
    torch.set_num_threads(1)
    engine = FusionEngine.from_pretrained(model, store=store, chunk_tokens=48)
    if verb == "write":
        write(engine, told, int(rest))
        return
    reader = Reader(engine, told, json.loads(Path(rest).read_text()))
    reader.run(int(seed))
    shown = {
        "searches": reader.searches,
        "answers": reader.answers,
        "wrong": reader.wrong,
        "errors": reader.errors,
    }
    sys.stdout.write(json.dumps(shown))


if __name__ == "__main__":
    main(*sys.argv[1:4], Path(sys.argv[4]), *sys.argv[5:])
