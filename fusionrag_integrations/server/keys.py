"""API keys: who may use which scopes, and who may change documents."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from hmac import compare_digest
from http import HTTPStatus
from pathlib import Path
from typing import Any

from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.server.errors import ApiError, not_allowed
from fusionrag_integrations.support.inputs import check_fields, shown
from fusionrag_integrations.support.names import refuse_unknown

EVERY_SCOPE = "*"
_FIELDS = ("sha256", "scopes", "may_write", "may_measure", "at_once")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and what they may do.

    name: for logs, never the key. scopes: theirs, None for every one. may_write: add and delete
    documents of these scopes. may_measure: read the server's metrics, which are of all callers.
    at_once: how many of their requests may be under way, of all kinds that wait for a turn; None
    for no limit of their own.
    """

    name: str
    scopes: tuple[str, ...] | None = None
    may_write: bool = False
    may_measure: bool = False
    at_once: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.scopes == ():
            raise InvalidInputError(f"The key {self.name!r} has no scopes; give it some.")
        if self.at_once is not None and self.at_once < 1:
            raise InvalidInputError(
                f"at_once of the key {self.name!r} is {self.at_once}; it must be at least 1."
            )

    def allowed(self, asked: Sequence[str] | None) -> tuple[str, ...] | None:
        """The scopes of a request: those it names, else all of the caller's; None for every one.

        Raises `ApiError` (403) where it names another.
        """
        if asked is None:
            return self.scopes
        for scope in asked:
            self.check_scope(scope, "scopes")
        return tuple(asked)

    def check_scope(self, scope: str, param: str) -> None:
        """Raises `ApiError` (403) for a scope that isn't the caller's. param: what names it."""
        if self.scopes is not None and scope not in self.scopes:
            raise not_allowed(f"This key may not use the scope {shown(scope)}.", param)

    def check_may_write(self) -> None:
        """Raises `ApiError` (403) for a caller who may not."""
        if not self.may_write:
            raise not_allowed("This key may not change documents.")

    def written(self, scope: str | None) -> str:
        """The scope to write to: the one named, or "" if it may be used, or the caller's only one.

        Raises `ApiError`: 403 for another's scope, 400 where a scope must be named.
        """
        if scope is None:
            if self.scopes is None or "" in self.scopes:
                return ""
            if len(self.scopes) > 1:
                message = f"Name a scope: this key has {', '.join(map(repr, self.scopes))}."
                raise ApiError(HTTPStatus.BAD_REQUEST, message, "scope")
            return self.scopes[0]
        self.check_scope(scope, "scope")
        return scope


ANYONE = Caller("anyone", may_write=True, may_measure=True)
"""Who asks where no keys are configured."""


class Keys:
    """The callers, each found by the SHA-256 of their key."""

    def __init__(self, callers: Mapping[str, Caller]) -> None:
        """callers: by the hexadecimal SHA-256 of a key."""
        self._callers = [(digest.encode(), caller) for digest, caller in callers.items()]

    @classmethod
    def read(cls, path: Path) -> Keys:
        """Read a TOML file, which holds no key itself, with a table for each:

            [web]
            sha256 = "..."            # of the key, in hexadecimal
            scopes = ["public"]       # or "*" for every scope
            may_write = false         # these are the defaults
            may_measure = false
            at_once = 8               # no limit by default

        Raises `InvalidInputError` for a file that can't be read or used.
        """
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InvalidInputError(f"The keys in {path} can't be read: {error}") from error
        if not content:
            raise InvalidInputError(f"There are no keys in {path}; without any, give no file.")
        callers: dict[str, Caller] = {}
        for name, entry in content.items():
            digest, caller = _entry(name, entry, path)
            if digest in callers:
                raise InvalidInputError(
                    f"{name!r} and {callers[digest].name!r} in {path} are the same key."
                )
            callers[digest] = caller
        return cls(callers)

    def caller(self, authorization: str) -> Caller:
        """Who sent this header. Every digest is compared in full, whichever is the right one.

        Raises `ApiError` (401) for a missing or unknown key.
        """
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise _unauthorized("Give an API key: Authorization: Bearer KEY.")
        given = sha256(key.strip().encode(errors="surrogateescape")).hexdigest().encode()
        found = [caller for digest, caller in self._callers if compare_digest(digest, given)]
        if not found:
            raise _unauthorized("This API key is not known here.")
        return found[0]


def _unauthorized(message: str) -> ApiError:
    headers = {"WWW-Authenticate": "Bearer"}
    return ApiError(HTTPStatus.UNAUTHORIZED, message, code="invalid_api_key", headers=headers)


def _entry(name: str, entry: Any, path: Path) -> tuple[str, Caller]:
    """A key's digest, and whose it is."""
    if not isinstance(entry, dict):
        raise InvalidInputError(f"{name!r} in {path} is no table; give [{name}] and its entries.")
    refuse_unknown(f"The key {name!r} in {path}", entry, _FIELDS)
    digest, scopes = entry.get("sha256"), entry.get("scopes")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise InvalidInputError(
            f"The key {name!r} in {path} needs sha256, 64 hexadecimal digits in lower case: "
            "printf %s KEY | sha256sum"
        )
    if scopes != EVERY_SCOPE and not isinstance(scopes, list):
        raise InvalidInputError(
            f"The key {name!r} in {path} needs scopes: a list of them, or {EVERY_SCOPE!r} for all."
        )
    rest = {field: entry[field] for field in _FIELDS[2:] if field in entry}
    given = None if scopes == EVERY_SCOPE else tuple(scopes)
    return digest, Caller(name, given, **rest)
