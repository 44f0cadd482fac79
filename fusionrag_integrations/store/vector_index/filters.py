"""Metadata that Chroma stores with a chunk, and filters on it in Chroma's terms.

Names of the user's metadata get a prefix, so that they can't replace a chunk's scope.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from typing import Any

from fusionrag_integrations.documents.types import Chunk, MetadataValue
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.support.inputs import shown

_INTEGER_BITS = 64  # of SQLite's
_MOST_VALUES = 10_000  # Chroma binds two of SQLite's 32,766 variables to a number
_MOST_CONDITIONS = 900  # each is a level of an expression; SQLite's have 1,000 at most


def filterable_metadata(chunk: Chunk) -> dict[str, MetadataValue]:
    """A chunk's metadata, title, document id and scope, as stored in Chroma.

    Values that Chroma can't store are left out: lists, non-finite numbers, integers of more than
    64 bits.
    """
    known = {"document_id": chunk.document_id, "title": chunk.title, **chunk.metadata}
    kept = {_name(key): value for key, value in known.items() if _can_be_stored(value)}
    return {**kept, "scope": chunk.scope}


def chroma_filter(
    scopes: Sequence[str] | None = None, where: Mapping[str, Any] | None = None
) -> dict[str, Any] | None:
    """A filter in Chroma's terms. scopes: not empty, None for all. where: on metadata.

    None where both are. Raises `InvalidInputError` for a `where` that can't be used, and for more
    than 900 conditions or 10,000 values, which Chroma can't compare at once.
    """
    conditions: list[dict[str, Any]] = []
    if scopes is not None:
        conditions.append({"scope": {"$in": list(scopes)}})
    if where is not None:
        conditions.append(_checked(where))
    if not conditions:
        return None
    condition = _all_of(conditions)
    _check_size(condition)
    return condition


def _can_be_stored(value: MetadataValue) -> bool:
    if isinstance(value, int):
        return value.bit_length() < _INTEGER_BITS
    return isinstance(value, str) or (isinstance(value, float) and isfinite(value))


def _name(key: str) -> str:
    return f"metadata_{key}"


def _checked(where: Mapping[str, Any]) -> dict[str, Any]:
    from chromadb.api.types import validate_where

    try:
        condition = _renamed(where)
        validate_where(condition)
    except (AttributeError, RecursionError, TypeError, ValueError) as error:
        raise InvalidInputError(
            f"The filter {shown(where)} can't be used: {error}. Give metadata entries such as "
            '{"page": 7} or {"page": {"$gt": 3}}, joined by "$and" or "$or".'
        ) from error
    return condition


def _check_size(condition: Mapping[str, Any]) -> None:
    compared = list(_compared(condition))
    values = sum(len(value) if isinstance(value, list) else 1 for value in compared)
    if len(compared) > _MOST_CONDITIONS or values > _MOST_VALUES:
        raise InvalidInputError(
            f"The filter has {len(compared):,} conditions with {values:,} values, its scopes "
            f"among them; give at most {_MOST_CONDITIONS} conditions and {_MOST_VALUES:,} values."
        )


def _compared(condition: Mapping[str, Any]) -> Iterator[Any]:
    """What each condition compares metadata with, in Chroma's terms."""
    for key, value in condition.items():
        if key in ("$and", "$or"):
            for part in value:
                yield from _compared(part)
        else:
            yield from value.values() if isinstance(value, dict) else (value,)


def _renamed(where: Mapping[str, Any]) -> dict[str, Any]:
    """A filter with the user's names replaced by those in Chroma."""
    conditions: list[dict[str, Any]] = []
    for key, condition in where.items():
        if key.startswith("$"):
            parts = [_renamed(part) for part in condition]
            conditions.append(parts[0] if len(parts) == 1 else {key: parts})
        else:
            conditions.append({_name(key): condition})
    return _all_of(conditions)


def _all_of(conditions: list[dict[str, Any]]) -> dict[str, Any]:
    if not conditions:
        return {}
    return conditions[0] if len(conditions) == 1 else {"$and": conditions}
