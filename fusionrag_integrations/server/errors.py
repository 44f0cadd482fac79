"""Errors -> HTTP answers in OpenAI's form. What went wrong inside is logged, not told."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from fusionrag_integrations.errors import (
    FusionRAGError,
    InvalidInputError,
    PromptTooLongError,
    StoreBusyError,
    StoreClosedError,
)

CLIENT_GONE = 499  # a status for logs and metrics; nobody is there to read it
_RETRY = {"Retry-After": "1"}  # seconds, after which a client that was turned away asks again
_TYPES: Mapping[int, str] = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
}


@dataclass(eq=False)  # not frozen: raising one sets its traceback
class ApiError(Exception):
    """An answer that isn't the one asked for. param: which part of the request is wrong."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """As OpenAI's clients read it."""
        kind = "server_error" if self.status >= HTTPStatus.INTERNAL_SERVER_ERROR else None
        return {
            "error": {
                "message": self.message,
                "type": kind or _TYPES.get(self.status, "invalid_request_error"),
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status, dict(self.headers))


def turned_away(message: str) -> ApiError:
    """For a request that found no room; the same one may be answered a little later."""
    status = HTTPStatus.TOO_MANY_REQUESTS
    return ApiError(status, message, code="busy", headers=_RETRY)


def closing() -> ApiError:
    """For a request that came while the server ends."""
    return ApiError(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "This server is closing; ask again later.",
        code="closing",
        headers={**_RETRY, "Connection": "close"},
    )


def gone() -> ApiError:
    """For a request whose client went away."""
    return ApiError(CLIENT_GONE, "The client is gone.")


def lost() -> ApiError:
    """For a request that was passed on to a server which then ended."""
    return ApiError(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "The replica that had this request was lost; ask again.",
        code="replica_lost",
        headers=_RETRY,
    )


def not_allowed(message: str, param: str | None = None) -> ApiError:
    """For a key that may not do this."""
    return ApiError(HTTPStatus.FORBIDDEN, message, param, "not_allowed")


def no_model(name: str, known: str) -> ApiError:
    """For a model that isn't served here."""
    message = f"There is no model {name!r} here; this server has {known!r}."
    return ApiError(HTTPStatus.NOT_FOUND, message, "model", "model_not_found")


def api_error(error: Exception) -> ApiError:
    """The answer to a request that raised an error."""
    match error:
        case ApiError():
            return error
        case RequestValidationError():
            return _of_validation(error)
        case HTTPException(__cause__=ApiError() as cause):  # while FastAPI read the body
            return cause
        case HTTPException(status_code=HTTPStatus.BAD_REQUEST, __cause__=Exception() as cause):
            return ApiError(HTTPStatus.BAD_REQUEST, _unreadable(cause))
        case HTTPException():
            phrase = HTTPStatus(error.status_code).phrase
            message = error.detail if error.detail != phrase else f"{phrase}."
            return ApiError(error.status_code, message, headers=error.headers or {})
        case PromptTooLongError():
            return ApiError(
                HTTPStatus.BAD_REQUEST, str(error), "messages", "context_length_exceeded"
            )
        case InvalidInputError():
            return ApiError(HTTPStatus.BAD_REQUEST, str(error))
        case StoreBusyError():
            told = "Another process is changing the documents; ask again later."
            return ApiError(HTTPStatus.CONFLICT, told, code="store_busy", headers=_RETRY)
        case StoreClosedError():
            return closing()
    return ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, "The server failed to answer this request.")


def is_told(error: Exception) -> bool:
    """Whether the answer says what was wrong, so that no log needs to."""
    return api_error(error).status != HTTPStatus.INTERNAL_SERVER_ERROR


def _unreadable(cause: Exception) -> str:
    """Why a body can't be read as JSON at all, of which FastAPI tells nothing."""
    match cause:
        case UnicodeDecodeError():
            encoding, at = cause.encoding.upper(), cause.start
            return f"The body is no {encoding}: {cause.reason} at byte {at}. Encode it as UTF-8."
        case RecursionError():
            return "The body is nested too deeply; give fewer levels of objects and arrays."
    most = sys.get_int_max_str_digits()
    return f"The body holds an integer of more than {most:,} digits; give it as a string."


def _of_validation(error: RequestValidationError) -> ApiError:
    """The first thing that is wrong with a body or its parameters."""
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    where = [str(part) for part in first["loc"][1:]]
    if isinstance(cause, ApiError):
        return cause
    if isinstance(cause, FusionRAGError):
        return api_error(cause)
    if first["type"] == "json_invalid":
        return ApiError(HTTPStatus.BAD_REQUEST, f"The body is no JSON: {cause}.")
    param = ".".join(where) or None
    if not where and first["type"] in ("model_attributes_type", "dict_type", "missing"):
        message = "Give the body as a JSON object, with the header Content-Type: application/json."
        return ApiError(HTTPStatus.BAD_REQUEST, message)
    return ApiError(HTTPStatus.BAD_REQUEST, f"{param or 'The body'}: {first['msg']}.", param)
