"""Calibrating and measuring."""

from __future__ import annotations

from fusionrag_integrations.bench.log import open_log
from fusionrag_integrations.calibrate import calibrate
from tests.provocations.world import Provoked, World

provoked = Provoked()


def quiet(done: int, total: int) -> None:
    """A run without a progress bar."""


@provoked.by("... is of another run: ...")
def another_run(world: World) -> None:
    open_log(world.file("log.jsonl", "{}\n"), {"model": "tiny"}, [])


@provoked.by("A calibrating question has no chunk of the store in its prompt, or no answer: ...")
def unknown_chunks(world: World) -> None:
    calibrate(world.engine, ["Who wrote this?", "Who are you?"], quiet)


provoked.each(
    {
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
        "--... ...: give numbers between commas.": lambda w: w.run(
            "bench", "quality", "--ratios", "half"
        ),
        "--... ...: they must lie in [...].": lambda w: w.run("bench", "quality", "--ratios", "15"),
        "--kv ...: choose isolated, fused.": lambda w: w.run("bench", "quality", "--kv", "none"),
        "Unknown formats ...; known are ...": lambda w: w.run(
            "bench", "formats", "--formats", "int2"
        ),
        "Unknown shape ...; known are ...": lambda w: w.run("bench", "ttft", "--config", "huge"),
        "Unknown parts ...; choose among ...": lambda w: w.run("bench", "store", "--parts", "all"),
        "Give --config or --model, not both.": lambda w: w.run(
            "bench", "ttft", "--config", "demo", "--model", w.model_dir
        ),
        "A context of ... tokens is too long: ... holds ....": lambda w: w.run(
            "bench", "ttft", "--model", w.model_dir, "--context", 9000
        ),
        "A context of ... tokens has no room for chunks.": lambda w: w.run(
            "bench", "ttft", "--model", w.model_dir, "--context", 3
        ),
        "--heads ... is no multiple of --kv-heads ....": lambda w: w.run(
            "bench", "kernel", "--heads", 7, "--kv-heads", 2
        ),
        "Traffic needs at least one of everything; got ...": lambda w: w.run(
            "bench", "traffic", "--chunks", 0
        ),
    }
)
