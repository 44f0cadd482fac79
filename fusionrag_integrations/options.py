"""The fields that every adapter's language model has, and how calls change them.

Both frameworks' components are pydantic models, so one set of declared fields serves both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from pydantic import ConfigDict, Field, model_validator

from fusionrag_integrations.components import Component
from fusionrag_integrations.engine import FusionEngine
from fusionrag_integrations.types import AnswerSettings, KVSource

FRAMEWORK_ARGUMENTS = frozenset({"stream"})  # of calls: LangChain reads it, and passes it on


class AnswerOptions(Component):
    """An engine, and how it answers unless a call says otherwise.

    `max_new_tokens`, as transformers calls it, is `max_tokens`. Raises `InvalidInputError` for
    other names that aren't fields, and for values that can't be.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    engine: FusionEngine = Field(exclude=True, repr=False)
    kv: KVSource = Field(
        default="fused", description="fused, isolated, prefix: a cache; none: full attention."
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

    @model_validator(mode="after")
    def _check(self) -> AnswerOptions:
        self.settings()
        return self

    @property
    def model_name(self) -> str:
        """The model's own name, under which traces show it."""
        return self.engine.model_name

    def settings(
        self, stop: Sequence[str] | None = None, changes: Mapping[str, Any] | None = None
    ) -> AnswerSettings:
        """The settings of one call. `stop` takes the place of the field's; so do `changes`.

        Raises `InvalidInputError` for values that can't be and names that aren't settings.
        """
        settings = AnswerSettings(
            kv=self.kv,
            selector=self.selector,
            ratio=self.ratio,
            scopes=None if self.scopes is None else tuple(self.scopes),
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            seed=self.seed,
            repetition_penalty=self.repetition_penalty,
            stop=_frozen(self.stop if stop is None else stop),
            raw=self.raw,
        )
        given = {name: v for name, v in (changes or {}).items() if name not in FRAMEWORK_ARGUMENTS}
        return settings.changed({name: _frozen(value) for name, value in given.items()})

    def identity(self) -> dict[str, Any]:
        """What tells one configuration from another, in logs and in a framework's cache."""
        chosen = AnswerOptions.model_dump(self, include=set(AnswerOptions.model_fields))
        corpus = self.engine.corpus
        place = str(corpus.path.resolve()).encode()
        store = {  # an answer depends on what the store held; traces needn't tell where it is
            "signature": corpus.catalog.info.record_signature,
            "store": sha256(place).hexdigest(),
            "revision": corpus.catalog.revision,
        }
        # LangChain puts a call's own stops under the field's name.
        return {"model_name": self.model_name, "own_stop": chosen.pop("stop")} | store | chosen


def _frozen(value: Any) -> Any:
    """A list as settings take it; anything else is theirs to refuse, such as a single string."""
    return tuple(value) if isinstance(value, list) else value
