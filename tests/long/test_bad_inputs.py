"""Odd values for everything that users give: by the command, by functions, by components."""

from __future__ import annotations

import inspect
import os
import random
import reprlib
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from math import inf, nan
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from pydantic import ValidationError

import fusionrag_integrations.langchain as lc
import fusionrag_integrations.llama_index as li
from fusionrag_integrations import AnswerSettings, Document, FusionEngine, Passage, Store
from fusionrag_integrations.cli import main
from fusionrag_integrations.documents.chunking import Chunker
from fusionrag_integrations.documents.readers import read_documents
from fusionrag_integrations.errors import FusionRAGError
from fusionrag_integrations.ingest.neighbours import Neighbours
from fusionrag_integrations.store.kv.disk_budget import Budgets
from tests.conftest import nested, town

Report = Callable[[str, str, object, object], None]

SECONDS = 4  # after which work that has begun is interrupted: what was given is accepted
FEW = {"bench", "demo", "calibrate"}  # commands that begin long work with nearly everything
QUESTION = "Where is house 7 of town number 1?"


def odd_files(directory: Path) -> list[str]:
    """Paths of files that are none, or that no reader expects."""
    directory.mkdir()
    contents = {
        "empty": b"",
        "latin": "caf\u00e9".encode("latin-1"),
        "zeros": bytes(1000),
        "deep.json": b"[" * 100_000,
        "deep.jsonl": b'{"text":' * 20_000,
        "number.jsonl": b'{"text": 1e400}\n',
        "digits.jsonl": b'{"text": "a", "metadata": {"x": ' + b"9" * 5000 + b"}}\n",
        "name\udcff.txt": b"text",
        "surrogate.jsonl": b'{"text": "\\ud83d", "id": "\\ud83d"}\n',
    }
    for name, content in contents.items():
        (directory / name).write_bytes(content)
    (directory / "directory.jsonl").mkdir()
    os.mkfifo(directory / "fifo.jsonl")
    (directory / "loop.txt").symlink_to(directory / "loop.txt")
    found = [str(path) for path in sorted(directory.iterdir())]
    return [*found, str(directory / "missing"), "/dev/full", "/dev/null"]


WORDS = [
    *("", " ", "0", "-1", "1e308", "nan", "inf", "-inf", str(10**20), str(10**400), "1.5", "x,,y"),
    *(
        "\u00e9\u4e2d\u6587",
        "\x1b[31m\x07\n",
        "[/red]",
        "\ud83d",
        "\udcff",
        "a\x00b",
        "%s{}",
        "a" * 300,
        "-",
        "--",
        ",",
    ),
    *("json:dumps", "json:", ":", "os:getcwd", "no.such:thing", "builtins:dict", "json:decoder"),
]


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Each command, with the words that lead to it."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


def interrupted(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def test_the_command(
    model_dir: Path, tmp_path: Path, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # odd values are names of files too
    signal.signal(signal.SIGALRM, interrupted)
    store = tmp_path / "store"
    with FusionEngine.from_pretrained(model_dir, store=store, chunk_tokens=48) as engine:
        engine.ingest([town(0)])
    text = tmp_path / "text.txt"
    text.write_text(town(1).text or "")
    values = [*WORDS, *odd_files(tmp_path / "odd")]
    usual = {
        "store": store,
        "model": model_dir,
        "paths": text,
        "question": QUESTION,
        "document_ids": "nobody",
        "max_tokens": 2,
        "out": tmp_path / "out",
        "questions": 1,
    }
    counts, faults = Counter[str](), list[str]()
    chance = random.Random(0)
    for words, command in commands(main):
        for odd in command.params:
            if isinstance(odd, click.Option) and odd.is_flag:
                continue
            for value in chance.sample(values, 2 if words[0] in FEW else 10):
                given = list(words)
                for parameter in command.params:
                    name = str(parameter.name)
                    if parameter is not odd and not (parameter.required or name in usual):
                        continue
                    if isinstance(parameter, click.Option) and parameter.is_flag:
                        continue
                    shown = value if parameter is odd else str(usual.get(name, text))
                    if isinstance(parameter, click.Option):
                        given += [parameter.opts[-1], shown]
                    else:
                        given += [shown]
                signal.alarm(SECONDS)
                result = CliRunner().invoke(main, given)
                signal.alarm(0)
                counts["done"] += 1
                counts["interrupted"] += result.exit_code == 130
                counts["refused"] += result.exit_code != 0
                raw = result.exception and not isinstance(result.exception, SystemExit)
                silent = result.exit_code != 0 and not result.output.strip()
                if raw or silent:
                    faults.append(f"{given}: {result.exception!r}")
    monkeypatch.undo()  # rows are kept where the tests were started
    report(
        "Bad inputs",
        "Odd values for each argument and option of each subcommand of `fusionrag`",
        f"{counts['done']} calls, of which {counts['refused'] - counts['interrupted']} were "
        f"refused, and {counts['interrupted']} began work that was interrupted",
        f"{len(faults)} tracebacks, or refusals without a message",
    )
    assert not faults, "\n".join(faults)


class Strange:
    """Refuses whatever it is asked."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)

    def __eq__(self, other: object) -> bool:
        raise ValueError("not comparable")

    __hash__ = None  # type: ignore[assignment]


VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**20, -(10**400), 0.5, -0.0, 1e308, nan, inf),
    *("", " ", "a", "\x00", "\ud83d", "x" * 10_000, b"", b"a", "None", "fused", "float32"),
    *((), [], [None], [1], ["a"], [[]], {}, {"a": 1}, {1: 2}, {"a": None}, set(), {1}, [nan]),
    *(object(), object, Strange(), Strange, 1j, range(3), iter([]), Path(), Path("\x00"), nested()),
    *(
        ["\x00"],
        ["a" * 5000],
        *(np.array(["a", "b"]), np.array("a"), np.array([]), np.int64(3), np.float32(0.5)),
        *(torch.tensor(1), torch.tensor([1, 2]), torch.tensor(True)),
        lambda: None,
        print,
        town(0),
        [town(0)],
        [town(0), None],
        Ellipsis,
        NotImplemented,
    ),
]
# Another kind of error than ours is the framework's where its own field is meant.
FRAMEWORK: tuple[type[Exception], ...] = (ValidationError,)


def parameters(call: Callable[..., Any]) -> list[str]:
    """The names that a call takes by name."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in inspect.signature(call).parameters.values() if p.kind in kinds]


def tried(
    where: str,
    call: Callable[..., Any],
    usual: dict[str, Any],
    names: list[str],
    counts: Counter[str],
) -> Iterator[str]:
    """What is wrong with how odd values of each parameter are taken."""
    for name in names:
        for value in VALUES:
            if name == "progress" and callable(value):
                continue  # errors of functions that were given pass through
            counts["done"] += 1
            try:
                call(**usual | {name: value})
            except FusionRAGError:
                counts["refused"] += 1
            except FRAMEWORK:
                counts["refused by the framework"] += 1
            except Exception as error:  # noqa: BLE001 whatever it is, it is reported
                shown = reprlib.repr(value) if not isinstance(value, Strange) else "Strange()"
                yield f"{where}({name}={shown}): {type(error).__name__}: {str(error)[:150]}"


def test_functions_and_components(model_dir: Path, tmp_path: Path, report: Report) -> None:
    store = tmp_path / "store"
    engine = FusionEngine.from_pretrained(model_dir, store=store, chunk_tokens=48)
    engine.ingest([town(0), town(1)])
    settings = {"max_tokens": 1}
    vector = engine.store.embed_question(QUESTION)
    answer = AnswerSettings(**settings)  # type: ignore[arg-type]
    calls: list[tuple[str, Callable[..., Any], dict[str, Any], list[str] | None]] = [
        ("AnswerSettings", AnswerSettings, {}, None),
        ("Document", Document, {"id": "a", "text": "b"}, None),
        ("Passage", Passage, {"text": "b"}, None),
        ("Budgets", Budgets, {}, None),
        ("Neighbours", Neighbours, {}, None),
        ("Chunker", Chunker, {"chunk_tokens": 48}, None),
        ("read_documents", lambda paths: list(read_documents(paths)), {}, ["paths"]),
        ("Store.open", Store.open, {"path": store}, None),
        ("corpus.search", engine.store.search, {"question": QUESTION}, None),
        ("corpus.nearest", engine.store.nearest, {"vector": vector, "k": 2}, None),
        ("corpus.handle_of", engine.store.handle_of, {"text": "a", "source": "b"}, None),
        ("engine.answer", engine.answer, {"prompt": QUESTION, "settings": answer}, None),
        ("engine.stream", engine.stream, {"prompt": QUESTION, "settings": answer}, None),
        ("engine.load", engine.load, {"prompt": QUESTION, "settings": answer}, None),
        ("engine.encode", engine.encode, {"text": QUESTION}, None),
        ("engine.count_tokens", engine.count_tokens, {"prompt": "a"}, None),
        ("engine.prefetch", engine.prefetch, {"handles": []}, None),
        ("engine.offer", engine.offer, {"texts": []}, None),
        ("engine.delete", engine.delete, {"document_ids": ["nobody"]}, None),
        ("engine.ingest", engine.ingest, {"documents": []}, None),
        ("engine.calibrated", engine.calibrated, {}, None),
    ]
    for model in (lc.FusionRAGLLM, lc.ChatFusionRAG, li.FusionRAGLLM):
        names = list(AnswerSettings.__dataclass_fields__)
        calls.append((f"{model.__module__}.{model.__name__}", model, {"engine": engine}, names))
        asked: Callable[..., Any] = (
            model(engine=engine, max_tokens=1).invoke
            if hasattr(  # type: ignore[attr-defined]
                model, "invoke"
            )
            else model(engine=engine, max_tokens=1).complete
        )  # type: ignore[attr-defined]
        calls.append(
            (
                f"{model.__module__}.{model.__name__} called",
                lambda asked=asked, **given: asked(QUESTION, **given),
                {"max_tokens": 1},
                names,
            )
        )
    calls += [
        (
            "langchain retriever",
            lc.FusionKVRetriever,
            {"engine": engine},
            ["engine", "corpus", "k", "scopes"],
        ),
        ("langchain from_store", lc.FusionKVRetriever.from_store, {"path": store}, None),
        (
            "langchain from_texts",
            lc.FusionKVRetriever.from_documents,
            {"engine": engine, "documents": []},
            None,
        ),
        (
            "langchain retrieve",
            lc.FusionKVRetriever(engine=engine).invoke,
            {"input": QUESTION},
            ["input", "k"],
        ),
        ("llama_index retriever", li.FusionKVRetriever, {"engine": engine}, None),
        ("llama_index from_store", li.FusionKVRetriever.from_store, {"path": store}, None),
        (
            "llama_index from_nodes",
            li.FusionKVRetriever.from_nodes,
            {"engine": engine, "nodes": []},
            None,
        ),
        (
            "llama_index retrieve",
            li.FusionKVRetriever(engine=engine).retrieve,
            {},
            ["str_or_query_bundle"],
        ),
        ("llama_index transform", li.FusionKVTransform, {"engine": engine}, ["engine", "scope"]),
    ]
    counts, faults = Counter[str](), list[str]()
    for where, call, usual, names in calls:
        faults += tried(where, call, usual, names or parameters(call), counts)
    engine.close()
    report(
        "Bad inputs",
        "Odd values for each parameter of the engine, corpus, settings, documents, budgets and "
        "both frameworks' components",
        f"{counts['done']} calls, of which {counts['refused']} were refused by the package, "
        f"{counts['refused by the framework']} by the framework",
        f"{len(faults)} other errors",
    )
    assert not faults, "\n".join(faults)
