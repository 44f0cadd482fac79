"""What the server tells of its model, and counts of tokens."""

from __future__ import annotations

from typing import Any, Self

from pydantic import model_validator

from fusionrag_integrations.engine import FusionEngine
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.server.bodies import Body, Tool
from fusionrag_integrations.server.keys import Caller
from fusionrag_integrations.server.messages import ChatMessage, to_messages


class TokenizeBody(Body):
    """A text whose tokens are asked for, or a prompt whose tokens are counted.

    control_tokens: whether a text that spells one has it, as `FusionEngine.encode` takes it.
    """

    text: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    tools: list[Tool] | None = None
    raw: bool | None = None
    control_tokens: bool = True

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = [name for name in ("text", "prompt", "messages") if getattr(self, name) is not None]
        if len(given) != 1:
            raise InvalidInputError("Give one of text, prompt and messages.")
        if self.text is not None and (self.tools is not None or self.raw is not None):
            raise InvalidInputError("tools and raw are of prompts; a text is encoded as it is.")
        return self


def tokenized(engine: FusionEngine, caller: Caller, body: TokenizeBody) -> dict[str, Any]:
    """The tokens of a text, or how many the model reads of a prompt."""
    if body.text is not None:
        return {"token_ids": engine.encode(body.text, control_tokens=body.control_tokens)}
    prompt = to_messages(body.messages) if body.messages is not None else body.prompt or ""
    tools = [tool.schema_() for tool in body.tools or ()]
    count = engine.count_tokens(prompt, tools, body.raw, scopes=caller.scopes)
    return {"count": count}


def model_facts(engine: FusionEngine) -> dict[str, Any]:
    """The model as OpenAI lists it, with what adapters ask of an engine."""
    catalog = engine.store.catalog
    return {
        "id": engine.model_name,
        "object": "model",
        "created": 0,
        "owned_by": "fusionrag",
        "fusionrag": {
            "context_window": engine.context_window,
            "has_chat_template": engine.has_chat_template,
            "supports_tools": engine.supports_tools,
            "store": {
                "signature": catalog.info.record_signature,
                "revision": catalog.revision,
            },
        },
    }
