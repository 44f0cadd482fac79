"""What a server's failed response means, as the package's errors."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from fusionrag_integrations.errors import (
    FusionRAGError,
    InvalidInputError,
    NotAllowedError,
    PromptTooLongError,
    ServerBusyError,
    ServerError,
)
from fusionrag_integrations.support.inputs import parse_json

ATTEMPTS = 4  # how often a server that is busy is asked
LONGEST_PAUSE = 30.0  # seconds between them
_BUSY = (429, 503)
_TOO_LONG = "context_length_exceeded"
_KIND_OF_STATUS = {
    400: InvalidInputError,
    401: NotAllowedError,
    403: NotAllowedError,
    413: InvalidInputError,
    422: InvalidInputError,
    429: ServerBusyError,
    503: ServerBusyError,
}
_STATUS_OF = {
    "invalid_request_error": 400,
    "closing": 503,
    "replica_lost": 503,
}  # an error's type, or its code


def pause(response: httpx.Response, attempt: int) -> float:
    """Seconds after which to ask again; raises what the response means where that won't help.

    attempt: how often it was asked before.
    """
    if response.status_code not in _BUSY or attempt + 1 == ATTEMPTS:
        raise failure(response)
    seconds = _retry_after(response.headers.get("Retry-After", ""))
    seconds = 0.5 * 2**attempt if seconds is None else max(0.0, seconds)
    if seconds > LONGEST_PAUSE:
        raise failure(response)
    return seconds


def failure(response: httpx.Response) -> FusionRAGError:
    """The error for a response that was read."""
    error: Any = None
    with suppress(ValueError):
        error = parse_json(response.content)["error"]
    if not isinstance(error, Mapping):
        asked = f"{response.request.method} {response.request.url}"
        reason = f"{asked} was answered by {response.status_code} {response.reason_phrase}."
        error = {"message": f"{reason} Is a FusionRAG server at base_url?"}
    return _of_status(error, response.status_code)


def failure_within(error: Mapping[str, Any]) -> FusionRAGError:
    """The error for one that a stream told of after it had begun."""
    told = (error.get("code"), error.get("type"))
    return _of_status(error, next((_STATUS_OF[t] for t in told if t in _STATUS_OF), 500))


def _of_status(error: Mapping[str, Any], status: int) -> FusionRAGError:
    message = str(error.get("message", "The server gave no reason."))
    if error.get("code") == _TOO_LONG:
        return PromptTooLongError(message)
    return _KIND_OF_STATUS.get(status, ServerError)(message)


def _retry_after(given: str) -> float | None:
    """The seconds that a header asks for; None where it can't be read."""
    with suppress(ValueError):
        return float(given)
    with suppress(ValueError):
        return (parsedate_to_datetime(given) - datetime.now(UTC)).total_seconds()
    return None
