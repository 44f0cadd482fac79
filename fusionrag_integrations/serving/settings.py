"""How to answer: which KV, which tokens to recompute, how to generate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from fusionrag_integrations.documents.handles import KVHandle
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.execution.sampling import LEAST, MOST, SamplingParams
from fusionrag_integrations.selectors.selection import check_selector
from fusionrag_integrations.support.inputs import check_fields, shown
from fusionrag_integrations.support.names import refuse_unknown, resolve_aliases

KVSource = Literal["isolated", "fused", "none"]


def _is_schema(tool: object) -> bool:
    return isinstance(tool, Mapping) and isinstance(tool.get("function"), Mapping)


@dataclass(frozen=True, slots=True)
class AnswerSettings:
    """How to answer: which KV, which tokens to recompute, and how to generate.

    kv: "fused" (isolated where there is no valid fused KV), "isolated", or "none", which is full
    attention by the model's own dense prefill; None is "fused", or "none" of an engine that keeps
    no KV. corrected: whether KV is adapted to its context in
    the prompt: the first chunk is used isolated, the correction that ingest measured is added to
    the others, and the deviation that recomputed tokens show is applied to tokens near them; False
    uses KV as it is stored. selector, ratio: which of the chunk tokens are recomputed, and how
    many. handles: of chunks that the prompt is known to contain; None among them, of documents
    without a handle, is ignored. scopes: whose KV may be used, None for every scope's; text of
    other scopes is computed like any unknown text. break_even: whether a prompt too short for
    reuse to pay is computed in full, if that length was measured (`fusionrag calibrate`).

    max_tokens: the longest answer. stop: strings before which it ends, found in the text as it is
    shown and with special tokens written out: they may contain special tokens or parts of one.
    temperature: 0 is greedy; top_p, top_k (0 is no limit) and seed are for sampling above that.
    repetition_penalty: above 1 against tokens of the prompt and the answer; None is the model's
    own generation config, which also decides whatever has no setting here.
    tools: what the model may call, as JSON schemas in OpenAI's form, rendered by its chat template.
    raw: whether a prompt that is one string is the model's whole text, control tokens included;
    else the chat template makes a user's message of it, which can't spell any. None: if the string
    begins and ends turns as the template does. Chunks in it are text either way.
    """

    kv: KVSource | None = None
    corrected: bool = True
    selector: str = "fusionrag"
    ratio: float = 0.15
    handles: tuple[KVHandle, ...] = ()
    scopes: tuple[str, ...] | None = None
    break_even: bool = True
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    repetition_penalty: float | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    raw: bool | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.tools, tuple) or not all(map(_is_schema, self.tools)):
            raise InvalidInputError(
                f"tools is {shown(self.tools)}; give a tuple of schemas in OpenAI's form, each "
                "{'type': 'function', 'function': {...}}."
            )
        if isinstance(self.handles, tuple):
            object.__setattr__(self, "handles", tuple(h for h in self.handles if h is not None))
        check_fields(self)
        check_selector(self.selector)
        if not 0.0 <= self.ratio <= 1.0:
            raise InvalidInputError(f"ratio is {self.ratio}; it must lie in [0, 1].")
        if self.max_tokens < 1:
            raise InvalidInputError(f"max_tokens is {self.max_tokens}; it must be at least 1.")
        if self.temperature and not LEAST <= self.temperature <= MOST:
            raise InvalidInputError(
                f"temperature is {self.temperature}; it must lie in [{LEAST:g}, {MOST:g}], or be 0 "
                "for greedy decoding."
            )
        if not 0.0 < self.top_p <= 1.0:
            raise InvalidInputError(f"top_p is {self.top_p}; it must lie in (0, 1].")
        if self.top_k < 0:
            raise InvalidInputError(f"top_k is {self.top_k}; use 0 for no limit.")
        if self.repetition_penalty is not None and not LEAST <= self.repetition_penalty <= MOST:
            raise InvalidInputError(
                f"repetition_penalty is {self.repetition_penalty}; it must lie in [{LEAST:g}, "
                f"{MOST:g}]. 1 is none."
            )
        if not all(self.stop):
            raise InvalidInputError(
                f"stop is {shown(self.stop)}; give a tuple of non-empty strings."
            )

    @property
    def sampling(self) -> SamplingParams:
        """How tokens of the answer are chosen."""
        return SamplingParams(
            self.max_tokens, self.temperature, self.top_p, self.top_k, self.repetition_penalty
        )

    def changed(self, changes: Mapping[str, Any]) -> AnswerSettings:
        """These settings with some of them changed; `max_new_tokens` is `max_tokens`.

        Raises `InvalidInputError` for other names.
        """
        known = {f.name for f in fields(self)}
        changes = resolve_aliases(changes, known)
        refuse_unknown("AnswerSettings", changes, known)
        return replace(self, **changes)
