"""Installing and importing, and the command's own refusals."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import tiktoken

import fusionrag_integrations
from fusionrag_integrations import FusionEngine
from fusionrag_integrations.bench.extra import require_bench_extra
from fusionrag_integrations.bench.metrics import rouge1
from fusionrag_integrations.documents import chunking
from fusionrag_integrations.documents.embedding import LexicalEmbedder
from tests.provocations.world import Provoked, Seen, World

provoked = Provoked()


@provoked.by("No module named 'fusionrag_integrations'")
def not_installed(world: World) -> list[Seen]:
    """An interpreter without installed packages, as another environment's would be."""
    program = [sys.executable, "-I", "-S", "-c", "import fusionrag_integrations"]
    done = subprocess.run(program, cwd=world.tmp, capture_output=True, text=True, check=False)
    kind, _, message = done.stderr.splitlines()[-1].partition(": ")
    return [(kind, message)]


@provoked.by("cannot import name ... from 'fusionrag_integrations' ...")
def adapter_from_the_package(world: World) -> None:
    exec("from fusionrag_integrations import FusionRAGLLM")


@provoked.by("Measuring quality needs ...: pip install 'fusionrag-integrations[bench]'")
def no_extra(world: World) -> None:
    world.patch.setitem(sys.modules, "rouge_score", None)
    require_bench_extra()


@provoked.by("ROUGE needs rouge-score: pip install 'fusionrag-integrations[bench]'")
def no_rouge_score(world: World) -> None:
    world.patch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    rouge1("a", ["a"])


@provoked.by("The cl100k_base token table isn't bundled with the installed llama-index-core, ...")
def no_token_table(world: World) -> None:
    def unreachable(name: str) -> None:
        raise ConnectionError(name)

    world.patch.setattr(chunking, "bundled_ranks", lambda: None)
    world.patch.setattr(tiktoken, "get_encoding", unreachable)
    chunking.tiktoken_encoding.__wrapped__()


@provoked.by("Interrupted. What is on disk is kept: run the command again to go on.")
def interrupted(world: World) -> list[Seen]:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    world.patch.setattr(FusionEngine, "ingest", interrupt)
    where = ("--store", world.tmp / "new", "--model", world.model_dir)
    return world.run("index", world.file("a.txt", "Some text."), *where)


class Failing(LexicalEmbedder):
    """An embedding of the user's, out of order."""

    name = "failing"

    def embed_documents(self, texts: Sequence[str]) -> list[list[float]]:
        raise ConnectionError("no such host")


provoked.each(
    {
        "module 'fusionrag_integrations' has no attribute ...": lambda w: (
            fusionrag_integrations.FusionRAGLLM  # type: ignore[attr-defined]
        ),
        "No such command ...": lambda w: w.run("answer"),
        "Missing option ...": lambda w: w.run("inspect"),
        "Invalid value for ...": lambda w: w.run("index", w.tmp / "none", "--store", w.tmp / "new"),
        "--embedding ... can't be imported (...). Give MODULE:NAME ...": lambda w: w.run(
            *("ask", "Where?", "--store", w.store, "--embedding", "nowhere:Thing")
        ),
        "--embedding ... can't be made (...). ...": lambda w: w.run(
            *("ask", "Where?", "--store", w.store, "--embedding", "json:dumps")
        ),
        "--embedding ... failed (...). Call it with a few texts by itself.": lambda w: w.run(
            *("index", w.file("a.txt", "text"), "--store", w.tmp / "new", "--model", w.model_dir),
            *("--embedding", "tests.provocations.importing:Failing"),
        ),
        "--judge ... names ...; name a function.": lambda w: w.run(
            *("bench", "quality", "--limit", 1, "--judge", "json:__doc__")
        ),
        "There is no document ....": lambda w: w.run("delete", "no-town", "--store", w.copy()),
    }
)
