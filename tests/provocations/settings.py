"""Settings and tools."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from langchain_core.tools import tool

import fusionrag_integrations.langchain as lc
import fusionrag_integrations.llama_index as li
from fusionrag_integrations import Answer, AnswerSettings, FusionEngine, Store
from fusionrag_integrations.documents.readers import read_documents
from fusionrag_integrations.ray.routing import rank
from tests.langchain.templates import WITH_TOOLS
from tests.provocations.world import Provocation, Provoked, Seen, World

provoked = Provoked()


@tool
def weather(place: str) -> str:
    """How the weather is at a place."""
    return f"{place}: fair"


def setting(**given: Any) -> Provocation:
    return lambda world: AnswerSettings(**given)


def calling(text: str) -> Callable[[World], list[Seen]]:
    """A model that knows of a tool and writes this."""

    def call(world: World) -> list[Seen]:
        world.patch.setattr(world.engine.model.tokenizer, "chat_template", WITH_TOOLS)
        answer = world.engine.answer("Where?", AnswerSettings(max_tokens=1))
        said = Answer(text, answer.token_ids, "stop", answer.usage, answer.ttft)
        world.patch.setattr(FusionEngine, "answer", lambda *_: said)
        message = lc.ChatFusionRAG(engine=world.engine).bind_tools([weather]).invoke("How is it?")
        return [("invalid_tool_calls", str(call["error"])) for call in message.invalid_tool_calls]

    return call


@provoked.by("There is no tool ... to choose; there are ...")
def another_tool(world: World) -> None:
    world.patch.setattr(world.engine.model.tokenizer, "chat_template", WITH_TOOLS)
    lc.ChatFusionRAG(engine=world.engine).bind_tools([weather], tool_choice="timetable")


provoked.each(
    {
        "There is no selector .... Known selectors: ...": lambda w: w.engine.answer(
            "Where?", AnswerSettings(selector="best")
        ),
        "ratio is ...; it must lie in [0, 1].": setting(ratio=2.0),
        "max_tokens is ...; it must be at least 1.": setting(max_tokens=0),
        "temperature is ...; it must lie in [..., ...], or be 0 for greedy decoding.": (
            setting(temperature=-1.0)
        ),
        "The slack is ...; give 1 or more, such as ....": lambda w: rank({}, [], slack=0.5),
        "top_p is ...; it must lie in (0, 1].": setting(top_p=0.0),
        "top_k is ...; use 0 for no limit.": setting(top_k=-1),
        "repetition_penalty is ...; it must lie in [..., ...]. 1 is none.": setting(
            repetition_penalty=0.0
        ),
        "Unknown kv ...; choose one of ...": setting(kv="cached"),
        "handles is ...; give a tuple of KVHandle.": setting(handles="chunk"),
        "stop is ...; give a tuple of non-empty strings.": setting(stop=("",)),
        "tools is ...; give a tuple of schemas in OpenAI's form, ...": setting(tools=(weather,)),
        "raw is ...; give True or False, or None.": setting(raw="yes"),
        "Tools are given to a model by its chat template, ...": lambda w: w.engine.answer(
            "Where?", AnswerSettings(raw=True, tools=({"type": "function", "function": {}},))
        ),
        "... is ..., which can't be a path (...); give ...": lambda w: w.open("\0"),
        "... is empty; give ..., '.' for this directory.": lambda w: Store.open(""),
        "... takes no .... ...Accepted are ...": lambda w: lc.FusionRAGLLM(
            engine=w.engine, scope=["board"]
        ),
        "... and ... are the same; give one of them.": lambda w: lc.FusionRAGLLM(
            engine=w.engine, max_tokens=1, max_new_tokens=1
        ),
        "seed is ...; it must fit 64 bits, with its sign.": setting(seed=10**30),
        "max_tokens is ...; give a whole number.": setting(max_tokens=True),
        "engine is ...; give a FusionEngine.": lambda w: lc.FusionRAGLLM(engine="mine"),
        "... needs engine: ...(engine=...).": lambda w: li.FusionKVTransform(),
        "... needs an engine or a server's base_url, and not both: ...": lambda w: (
            lc.FusionRAGLLM()
        ),
        "An api_key is for a server; give it together with base_url.": lambda w: lc.FusionRAGLLM(
            engine=w.engine, api_key="secret"
        ),
        "budgets is ...; give a Budgets.": lambda w: w.open(budgets={"host": 1}),
        "texts is ...; give a list of strings.": lambda w: w.engine.register_texts("text"),
        "texts holds ...; give a list of strings.": lambda w: w.engine.register_texts([1]),
        "paths is ...; give a list of paths.": lambda w: list(read_documents("docs")),
        "This model's chat template doesn't support tools. ...": lambda w: w.engine.answer(
            "Where?", AnswerSettings(tools=({"type": "function", "function": {"name": "weather"}},))
        ),
        "The chat template of ... doesn't support tools. ...": lambda w: lc.ChatFusionRAG(
            engine=w.engine
        ).bind_tools([weather]),
        "This is no JSON: ...": calling("<tool_call>weather(Pelfield)</tool_call>"),
        "This list holds no call.": calling("<tool_call>[]</tool_call>"),
        "There is no tool ...; there are ...": calling(
            '<tool_call>{"name": "timetable", "arguments": {}}</tool_call>'
        ),
        "The arguments are no object.": calling(
            '<tool_call>{"name": "weather", "arguments": ["Pelfield"]}</tool_call>'
        ),
    }
)
