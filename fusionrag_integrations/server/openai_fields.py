"""Fields of OpenAI's requests that are no settings here: ignored where they change nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from http import HTTPStatus
from typing import Any

from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.server.errors import ApiError
from fusionrag_integrations.support.inputs import shown
from fusionrag_integrations.support.names import refuse_unknown

MAX_TOKENS = "max_completion_tokens"  # what OpenAI calls max_tokens now
# What answers don't depend on.
_IGNORED = frozenset(
    {
        *("metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention"),
        *("safety_identifier", "service_tier", "store", "user"),
    }
)
# What would change an answer, and the values under which it doesn't.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "top_logprobs": (0,),
    "verbosity": (),
    "web_search_options": (),
}


def known_fields(owner: str, given: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """The fields of a request that are used; null is as if a field weren't there.

    owner: what the request is for, in messages. Raises `ApiError` (400) for a field of OpenAI's
    that isn't supported, by name, and `InvalidInputError` for one that nobody knows.
    """
    used: dict[str, Any] = {}
    for name, value in given.items():
        if value is None or (name not in known and name in _IGNORED):
            continue
        if name not in known and name in _NEUTRAL:
            _check_neutral(name, value)
            continue
        used[name] = value
    if MAX_TOKENS in used:
        if "max_tokens" in used:
            raise InvalidInputError(f"{MAX_TOKENS} and max_tokens are the same; give one of them.")
        used["max_tokens"] = used.pop(MAX_TOKENS)
    refuse_unknown(owner, used, known)
    return used


def _check_neutral(name: str, value: Any) -> None:
    neutral = _NEUTRAL[name]
    if any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in neutral):
        return
    left = f"leave it out, or give {neutral[0]!r}" if neutral else "leave it out"
    message = f"{name} is {shown(value)}, which this server doesn't support; {left}."
    raise ApiError(HTTPStatus.BAD_REQUEST, message, name, "unsupported_parameter")
