"""The fields that every adapter's language model has, and how calls change them.

Both frameworks' components are pydantic models, so one set of declared fields serves both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any, Self

from pydantic import ConfigDict, Field, PrivateAttr, model_validator

from fusionrag_integrations.adapters.base import Engine, FusionEngine
from fusionrag_integrations.adapters.chosen import chosen_engine
from fusionrag_integrations.adapters.component import Component
from fusionrag_integrations.adapters.huggingface import HeldModel
from fusionrag_integrations.serving.settings import AnswerSettings, KVSource
from fusionrag_integrations.support.threads import Closable

FRAMEWORK_ARGUMENTS = frozenset({"stream"})  # of calls, which LangChain reads and passes on


class AnswerOptions(Component, Closable):
    """An engine, or the address of a server that has one, and how it answers by default.

    Over a server it is a context manager that closes its connections at the end; so does `close`.
    `max_new_tokens`, as transformers calls it, is `max_tokens`. Raises `InvalidInputError` for
    other names that aren't fields, and for invalid values.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    engine: FusionEngine | None = Field(default=None, exclude=True, repr=False)
    base_url: str | None = Field(
        default=None,
        exclude=True,
        repr=False,
        description="Instead of an engine: where `fusionrag serve` runs, 'http://localhost:8000'.",
    )
    api_key: str | None = Field(
        default=None,
        exclude=True,
        repr=False,
        description="The server's key for you; by default the variable FUSIONRAG_API_KEY.",
    )
    kv: KVSource | None = Field(
        default=None,
        description="fused, isolated, or none: full attention. By default fused, if KV is kept.",
    )
    selector: str = Field(
        default="fusionrag", description="How the tokens to recompute are chosen."
    )
    ratio: float = Field(
        default=0.15, description="Share of the chunk tokens to recompute, 0 to 1."
    )
    scopes: list[str] | None = Field(default=None, description="Use KV of these scopes only.")
    max_tokens: int = Field(default=256, description="The longest answer, in tokens.")
    temperature: float = Field(default=0.0, description="0 is greedy decoding.")
    top_p: float = Field(default=1.0, description="Nucleus sampling, for a temperature above 0.")
    top_k: int = Field(default=0, description="Sample from the k likeliest tokens; 0 is no limit.")
    seed: int | None = Field(default=None, description="Makes sampling repeatable.")
    repetition_penalty: float | None = Field(
        default=None,
        description="Above 1 against repetition; by default as the model's own config says.",
    )
    stop: list[str] = Field(default_factory=list, description="Strings that end the answer.")
    raw: bool | None = Field(
        default=None,
        description="Whether a prompt that is one string is the whole text; by default it is where "
        "it is in the model's chat format.",
    )

    _engine: Engine = PrivateAttr()

    @model_validator(mode="after")
    def _check(self) -> AnswerOptions:
        self.settings()
        self._engine = chosen_engine(type(self).__name__, self.engine, self.base_url, self.api_key)
        return self

    @classmethod
    def from_huggingface(
        cls, llm: Any, *, store: str | Path, embedding: object | None = None, **settings: Any
    ) -> Self:
        """The same model, generating as before, over a store, which is made where there is none.

        llm: LangChain's `HuggingFacePipeline`, for a chat `ChatHuggingFace` over one, too; or
        LlamaIndex's `HuggingFaceLLM`. Its model is shared, not loaded again. embedding: as for
        `FusionEngine.from_model`, which opens the store; close it by `engine.close()` of what is
        returned. settings: fields of this class, instead of what `llm` has; with kv="none" a new
        store keeps no KV, so that any model can be used.

        Raises `InvalidInputError` for another object and for settings that have no counterpart
        here, and whatever `FusionEngine.from_model` raises.
        """
        from fusionrag_integrations.engine import FusionEngine
        from fusionrag_integrations.store.stored_info import is_store

        held = cls._held_by(llm)
        full = settings.get("kv") == "none" and not is_store(store)
        with ExitStack() as unless_made:
            engine = FusionEngine.from_model(
                held.model,
                held.tokenizer,
                store=store,
                embedding=embedding,
                kv="none" if full else None,
            )
            unless_made.callback(engine.close)
            made = cls(engine=engine, **{**held.settings, **settings})
            unless_made.pop_all()
        return made

    @classmethod
    def _held_by(cls, llm: Any) -> HeldModel:
        raise NotImplementedError

    @property
    def model_name(self) -> str:
        """The model's own name, under which traces show it."""
        return self._engine.model_name

    def close(self) -> None:
        """Close the connections to a server; an engine that was given stays open."""
        if self.engine is None:
            self._engine.close()

    def settings(
        self, stop: Sequence[str] | None = None, changes: Mapping[str, Any] | None = None
    ) -> AnswerSettings:
        """The settings of one call: the fields, with `stop` and `changes` instead where given.

        Raises `InvalidInputError` for invalid values and names that aren't settings.
        """
        chosen = {name: getattr(self, name) for name in _SETTINGS}
        if stop is not None:
            chosen["stop"] = stop
        settings = AnswerSettings(**{name: _frozen(value) for name, value in chosen.items()})
        given = {name: v for name, v in (changes or {}).items() if name not in FRAMEWORK_ARGUMENTS}
        return settings.changed({name: _frozen(value) for name, value in given.items()})

    def identity(self) -> dict[str, Any]:
        """What identifies a configuration, in logs and in a framework's cache."""
        chosen = AnswerOptions.model_dump(self, include=set(AnswerOptions.model_fields))
        # LangChain puts a call's own stops under the field's name.
        named = {"model_name": self.model_name, "own_stop": chosen.pop("stop")}
        return named | self._engine.identity() | chosen


_SETTINGS = AnswerOptions.model_fields.keys() & {field.name for field in fields(AnswerSettings)}


def _frozen(value: Any) -> Any:
    """A list as a tuple, as in settings, which refuse anything else, such as a single string."""
    return tuple(value) if isinstance(value, list) else value
