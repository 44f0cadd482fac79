"""Names, metadata and dictionaries of the components."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.prompts import PromptTemplate

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.llama_index import FusionKVRetriever, FusionKVTransform, FusionRAGLLM
from tests.conftest import town
from tests.llama_index.helpers import QUESTION, town_nodes

SALT = "a-secret-of-the-owner"
FIELDS: dict[str, Any] = {"ratio": 0.5, "selector": "random", "scopes": ["a"], "stop": ["."]}
PLAIN = (str, int, float, bool, list, type(None))

both = pytest.mark.parametrize("kind", [FusionRAGLLM, FusionKVTransform])


@pytest.fixture(scope="module")
def salted(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> FusionEngine:
    store = tmp_path_factory.mktemp("salted") / "store"
    engine = FusionEngine.from_pretrained(model_dir, store=store, salt=SALT)
    engine.ingest([town(0)])
    return engine


def test_each_component_names_its_class(engine: FusionEngine) -> None:
    for kind in (FusionRAGLLM, FusionKVRetriever, FusionKVTransform):
        assert kind.class_name() == kind.__name__
    helper = FusionRAGLLM(engine=engine).prompt_helper()
    assert helper.class_name() == type(helper).__name__


@pytest.mark.parametrize("which", ["engine", "plain_engine"])
def test_metadata_is_the_models_own(request: pytest.FixtureRequest, which: str) -> None:
    engine: FusionEngine = request.getfixturevalue(which)
    metadata = FusionRAGLLM(engine=engine, max_tokens=12).metadata
    assert metadata.model_dump() == {
        "context_window": 2048,
        "num_output": 12,
        "is_chat_model": which == "engine",
        "is_function_calling_model": False,
        "model_name": engine.model_name,
        "system_role": MessageRole.SYSTEM,
    }


@both
def test_a_dictionary_holds_settings_and_no_engine_path_or_secret(
    salted: FusionEngine, kind: Any
) -> None:
    component = kind(engine=salted)
    told = component.to_dict()
    assert told["class_name"] == kind.__name__
    assert "engine" not in told
    assert all(isinstance(value, PLAIN) for value in told.values())
    for text in (component.to_json(), json.dumps(told), repr(component), component.json()):
        assert SALT not in text
        assert str(salted.store.path) not in text
        assert "FusionEngine" not in text


def test_a_models_dictionary_holds_all_its_settings(salted: FusionEngine) -> None:
    told = FusionRAGLLM(engine=salted, **FIELDS).to_dict()
    assert {name: told[name] for name in FIELDS} == FIELDS
    names = {"kv", "max_tokens", "temperature", "top_p", "top_k", "seed", "repetition_penalty"}
    assert names < told.keys()


def test_a_model_comes_back_over_an_engine(salted: FusionEngine) -> None:
    llm = FusionRAGLLM(engine=salted, max_tokens=3, **FIELDS)
    for again in (
        FusionRAGLLM.from_dict(llm.to_dict(), engine=salted),
        FusionRAGLLM.from_json(llm.to_json(), engine=salted),
    ):
        assert again.engine is salted
        assert again.to_dict() == llm.to_dict()
        assert again.complete(QUESTION).text == llm.complete(QUESTION).text


def test_a_transform_comes_back_over_an_engine(salted: FusionEngine) -> None:
    told = FusionKVTransform(engine=salted, scope="north").to_dict()
    again = FusionKVTransform.from_dict(told, engine=salted)
    assert (again.scope, again.engine) == ("north", salted)
    # A pipeline's cache must not take it for the one that it comes from.
    assert again.to_dict() != told


@both
def test_without_an_engine_it_says_what_to_give(salted: FusionEngine, kind: Any) -> None:
    component = kind(engine=salted)
    told = component.to_dict()
    for make in (lambda: kind.from_dict(told), lambda: kind.from_json(component.to_json())):
        with pytest.raises(InvalidInputError, match=rf"{kind.__name__}.from_dict\(data, engine="):
            make()
    assert told == component.to_dict()


@both
def test_what_cannot_leave_its_process_says_so_and_stays_whole(
    salted: FusionEngine, kind: Any
) -> None:
    """LlamaIndex's own pickling would take the engine out of the component that is pickled."""
    component = kind(engine=salted)
    with pytest.raises(InvalidInputError, match=f"A {kind.__name__} can't leave its process"):
        pickle.dumps(component)
    assert component.engine is salted


def test_a_copy_has_the_same_engine(salted: FusionEngine) -> None:
    llm = FusionRAGLLM(engine=salted)
    copy = llm.model_copy(update={"max_tokens": 2})
    assert copy.engine is salted
    assert copy.complete(QUESTION).raw["usage"]["completion_tokens"] == 2


@pytest.mark.asyncio
async def test_prompts_and_chats_by_template(engine: FusionEngine) -> None:
    llm = FusionRAGLLM(engine=engine, max_tokens=4)
    template = PromptTemplate("Say of {what}: it is")
    worded = template.format(what="a fox")
    expected = llm.chat([ChatMessage(content=worded)]).message.content
    assert llm.predict(template, what="a fox") == expected
    assert "".join(llm.stream(template, what="a fox")) == expected
    assert await llm.apredict(template, what="a fox") == expected
    assert "".join([p async for p in await llm.astream(template, what="a fox")]) == expected


def test_a_retriever_and_a_transform_share_an_engine(empty_engine: FusionEngine) -> None:
    FusionKVTransform(engine=empty_engine)(town_nodes(range(1)))
    assert len(FusionKVRetriever(engine=empty_engine).retrieve(QUESTION)) == 2
