"""Web workers: small ones, forked ones, and those that get a component by pickle."""

from __future__ import annotations

import asyncio
import os
import pickle
import subprocess
import sys
import threading
from typing import Any

import pytest

import fusionrag_integrations.langchain as lc
from fusionrag_integrations import AnswerSettings, FusionEngine
from fusionrag_integrations.adapters.remote import RemoteEngine
from tests.processes import Held, in_child
from tests.remote.loopback import LOOPBACK, Reply, Script, served

pytestmark = LOOPBACK

HEAVY = ("torch", "transformers", "chromadb", "safetensors", "fastapi")
ASK = """
import sys
{imports}
url = sys.argv[1]
with {model}(base_url=url, max_tokens=2) as model, FusionKVRetriever(base_url=url) as retriever:
    found = retriever.{search}("Where is house 15?")
    model.{ask}("Where?")
print([name for name in {heavy} if name in sys.modules])
"""
WORKERS = [
    ("langchain", "FusionRAGLLM", "invoke", "invoke"),
    ("langchain", "ChatFusionRAG", "invoke", "invoke"),
    ("llama_index", "FusionRAGLLM", "retrieve", "complete"),
]


@pytest.mark.parametrize(("framework", "model", "search", "ask"), WORKERS)
def test_a_worker_loads_neither_torch_nor_a_store(
    framework: str, model: str, search: str, ask: str, base_url: str
) -> None:
    imports = f"from fusionrag_integrations.{framework} import {model}, FusionKVRetriever"
    code = ASK.format(imports=imports, model=model, search=search, ask=ask, heavy=HEAVY)
    process = subprocess.run(
        [sys.executable, "-c", code, base_url], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == "[]"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system doesn't fork")
def test_a_forked_worker_makes_connections_of_its_own(base_url: str) -> None:
    with lc.FusionRAGLLM(base_url=base_url, max_tokens=4) as llm:
        expected = llm.invoke("Where?")
        assert in_child(lambda: llm.invoke("Where?")) == expected
        assert in_child(lambda: asyncio.run(llm.ainvoke("Where?"))) == expected
        assert llm.invoke("Where?") == expected
    script = Script([Reply(parts=[b'{"token_ids": [1]}'])])
    with served(script) as url, RemoteEngine(url) as engine:
        for _ in range(2):
            engine.encode("Where?")  # both by one connection, which stays open
        assert in_child(lambda: engine.encode("Where?")) == "[1]"
        engine.encode("Where?")
    mine, again, childs, later = script.clients
    assert mine == again == later != childs


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system doesn't fork")
def test_a_stream_goes_on_in_the_parent_alone(base_url: str) -> None:
    with RemoteEngine(base_url) as engine:
        expected = engine.stream("Where?", AnswerSettings(max_tokens=6)).read().text
        stream = engine.stream("Where?", AnswerSettings(max_tokens=6))
        first = next(stream)
        said = in_child(lambda: next(stream))
        assert said.startswith("StoreError: This answer was begun before its process was forked")
        assert in_child(stream.close) == "None"
        assert first + "".join(stream) == expected


@pytest.mark.parametrize("make", [lc.FusionRAGLLM, lc.ChatFusionRAG, lc.FusionKVRetriever])
def test_a_component_may_be_pickled_and_copied(make: Any, base_url: str) -> None:
    with make(base_url=base_url) as component:
        expected = component.invoke("Where?")
        again = pickle.loads(pickle.dumps(component))  # noqa: S301
        deep = component.model_copy(deep=True)
        for other in (again, component.model_copy(), deep):
            given = other.invoke("Where?")
            assert getattr(given, "content", given) == getattr(expected, "content", expected)
        again.close()
        component.invoke("Where?")


def test_calls_from_many_threads_and_loops(base_url: str, engine: FusionEngine) -> None:
    expected = lc.FusionRAGLLM(engine=engine, max_tokens=4).invoke("Where?")
    given: list[str] = []
    with lc.FusionRAGLLM(base_url=base_url, max_tokens=4) as llm:

        def work() -> None:
            given.append(llm.invoke("Where?"))
            given.append(asyncio.run(llm.ainvoke("Where?")))

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert given == [expected] * 16


def test_nothing_stays_open(base_url: str) -> None:
    def ask() -> None:
        with lc.FusionRAGLLM(base_url=base_url, max_tokens=2) as llm:
            llm.invoke("Where?")
            asyncio.run(llm.ainvoke("Where?"))
            next(iter(llm.stream("Where?")))
        with lc.FusionKVRetriever(base_url=base_url) as retriever:
            retriever.invoke("Where?")

    ask()
    before = Held.now().descriptors
    for _ in range(5):
        ask()
    assert Held.now().descriptors <= before + 1
