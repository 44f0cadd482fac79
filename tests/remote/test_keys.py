"""A server's keys and limits, as components over it see them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import pytest

import fusionrag_integrations.langchain as lc
import fusionrag_integrations.llama_index as li
from fusionrag_integrations import FusionEngine
from fusionrag_integrations.errors import NotAllowedError
from fusionrag_integrations.server import Keys, Limits, create_app
from fusionrag_integrations.server.keys import Caller
from tests.remote.loopback import LOOPBACK, PATIENCE, served
from tests.steps import Steps

pytestmark = LOOPBACK

KEY = "of-the-north"


@pytest.fixture
def guarded(engine: FusionEngine) -> Iterator[str]:
    keys = Keys({sha256(KEY.encode()).hexdigest(): Caller("north", scopes=("north",))})
    with served(create_app(engine, keys=keys)) as url:
        yield url


@pytest.mark.parametrize("key", [None, "another"])
def test_nobody_without_a_key(guarded: str, key: str | None) -> None:
    asks: list[Any] = [
        lambda: lc.FusionRAGLLM(base_url=guarded, api_key=key).invoke("Where?"),
        lambda: lc.FusionKVRetriever(base_url=guarded, api_key=key).invoke("Where?"),
        lambda: li.FusionRAGLLM(base_url=guarded, api_key=key).complete("Where?"),
    ]
    for ask in asks:
        with pytest.raises(NotAllowedError, match="API key"):
            ask()


def test_a_key_reaches_its_own_scope(guarded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSIONRAG_API_KEY", KEY)
    found = lc.FusionKVRetriever(base_url=guarded, k=9).invoke("Which town?")
    assert {document.metadata["title"] for document in found} == {"Town 3"}
    llm = lc.FusionRAGLLM(base_url=guarded, max_tokens=2)
    (answer,) = llm.generate([found[0].page_content]).generations[0]
    assert answer.generation_info["usage"]["reused_tokens"] > 0
    with pytest.raises(NotAllowedError, match="may not use the scope ''"):
        llm.invoke("Which town?", scopes=[""])


def test_a_full_server_answers_once_it_has_room(
    engine: FusionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(monkeypatch)
    with served(create_app(engine, limits=Limits(at_once=1, queue=0))) as url:
        llm = lc.FusionRAGLLM(base_url=url, max_tokens=4)
        answers: list[str] = []
        steps.hold_at(2)
        asking = [threading.Thread(target=lambda: answers.append(llm.invoke("Where?")))]
        asking[0].start()
        assert steps.is_held.wait(PATIENCE)
        asking.append(threading.Thread(target=lambda: answers.append(llm.invoke("Where?"))))
        asking[1].start()
        asking[1].join(0.5)  # is turned away meanwhile
        assert answers == []
        steps.go_on()
        for thread in asking:
            thread.join(PATIENCE)
    assert len(answers) == 2
    assert answers[0] == answers[1]
