"""Calibrating and measuring."""

from __future__ import annotations

from collections.abc import Sequence

from fusionrag_integrations.bench.calibrate import calibrate
from fusionrag_integrations.bench.log import open_log
from fusionrag_integrations.execution.recompute import PlacedPrompt, PrefillOutput
from fusionrag_integrations.selectors.selection import TokenSelection
from tests.provocations.world import Provoked, Seen, World, records

provoked = Provoked()


def quiet(done: int, total: int) -> None:
    """A run without a progress bar."""


@provoked.by("... is of another run: ...")
def another_run(world: World) -> None:
    open_log(world.file("log.jsonl", "{}\n"), {"model": "tiny"})


@provoked.by("... is damaged: line ... is no measurement (...). ...")
def damaged_log(world: World) -> None:
    log = world.file("log.jsonl", "")
    open_log(log, {"model": "tiny"})
    log.write_text(log.read_text() + "{}\n")
    open_log(log, {"model": "tiny"})


@provoked.by("A calibrating question has no chunk of the store in its prompt, or no answer: ...")
def unknown_chunks(world: World) -> None:
    calibrate(world.engine, ["Who wrote this?", "Who are you?"], quiet)


@provoked.by("No KV of the store at ... could be used for a question over its chunks. ...")
def check_without_kv(world: World) -> None:
    store = world.copy()
    for record in records(store):
        record.unlink()
    world.open(store).check(1)


@provoked.by("The context of ... holds ... tokens: too few for one chunk and the question ....")
def short_context(world: World) -> None:
    world.patch.setattr(world.engine.model, "context_window", 40)
    world.engine.check(1)


@provoked.by(
    "Not exact: with everything recomputed, the model doesn't say what it says by itself. ..."
)
def not_exact(world: World) -> list[Seen]:
    def nothing(
        placed: PlacedPrompt, selection: TokenSelection, answer: Sequence[int] = ()
    ) -> PrefillOutput:
        return recompute(placed, TokenSelection(()), answer)

    recompute = PlacedPrompt.recompute
    world.patch.setattr(PlacedPrompt, "recompute", nothing)
    return world.run("check", "--store", world.store, "--model", world.model_dir, "--questions", 1)


provoked.each(
    {
        "questions is ...; give a whole number from 1 on.": lambda w: w.engine.check(0),
        "An estimate is of this package's Documents, in a list; got ....": lambda w: w.engine.check(
            estimate=["notes.txt"]  # type: ignore[list-item]
        ),
        "The documents hold no text: there is nothing to estimate.": lambda w: w.run(
            *("check", "--store", w.tmp / "none", "--model", w.model_dir),
            *("--estimate", w.file("empty.txt")),
        ),
        "Calibrating needs 2 questions at least; got ...": lambda w: calibrate(
            w.engine, ["Where?"], quiet
        ),
        "There is no directory ...; give --out ...": lambda w: w.run(
            "calibrate", "--out", w.tmp / "none"
        ),
        "Unknown dataset ...; known are ...": lambda w: w.run(
            "bench", "quality", "--dataset", "squad"
        ),
        "--kinds are of ..., not of ...": lambda w: w.run(
            "bench", "quality", "--dataset", "musique", "--kinds", "bridge"
        ),
        "Data set ... is read from a file: give it with --data.": lambda w: w.run(
            "bench", "quality", "--dataset", "musique"
        ),
        "... isn't JSON (...); expected ...": lambda w: w.run(
            *("bench", "quality", "--dataset", "jsonl", "--data", w.file("a.jsonl", "{'"))
        ),
        "... isn't in the format ...: row ..., ...: ...": lambda w: w.run(
            *("bench", "quality", "--dataset", "jsonl", "--data", w.file("a.jsonl", "{}"))
        ),
        "... holds no questions; expected ...": lambda w: w.run(
            *("bench", "quality", "--dataset", "hotpotqa", "--data", w.file("a.json", "[]"))
        ),
        "Unknown kinds ...; known are ...": lambda w: w.run("bench", "quality", "--kinds", "puns"),
        "Unknown strategies ...; known are ...": lambda w: w.run(
            "bench", "quality", "--strategies", "best"
        ),
        "A prefix cache computes every chunk and answers as full attention does; ...": lambda w: (
            w.run("bench", "quality", "--strategies", "prefix_cache")
        ),
        "Unknown neighbours ...; known are ...": lambda w: w.run(
            "bench", "quality", "--limit", 1, "--neighbours", "nice"
        ),
        "--kv ...: choose isolated, fused, isolated_as_stored, fused_as_stored.": lambda w: w.run(
            "bench", "quality", "--kv", "none"
        ),
        "Unknown shape ...; known are ...": lambda w: w.run("bench", "ttft", "--config", "huge"),
        "Give --config or --model, not both.": lambda w: w.run(
            "bench", "ttft", "--config", "demo", "--model", w.model_dir
        ),
        "A context of ... tokens is too long: ... holds ....": lambda w: w.run(
            "bench", "ttft", "--model", w.model_dir, "--context", 9000
        ),
        "A context of ... tokens has no room for chunks.": lambda w: w.run(
            "bench", "ttft", "--model", w.model_dir, "--context", 3
        ),
    }
)
