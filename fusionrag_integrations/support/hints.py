"""Type hints as words: "a list of strings, or None"."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

_SINGULAR = {bool: "True or False", int: "a whole number", float: "a number", str: "a string"}
_PLURAL = {bool: "booleans", int: "whole numbers", float: "numbers", str: "strings"}


def members(hint: Any) -> Sequence[Any]:
    """The members of a union; of any other hint itself alone."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def describe(hint: Any, many: bool = False) -> str:
    """What a hint accepts, as messages say it. many: in the plural."""
    kinds = [part for part in members(hint) if part is not NoneType]
    either = " or ".join(dict.fromkeys(_describe_part(kind, many) for kind in kinds))
    return f"{either}, or None" if NoneType in members(hint) else either


def _describe_part(hint: Any, many: bool) -> str:
    origin, inside = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, inside))}"
    if origin in (tuple, list, Sequence):
        name = "tuple" if origin is tuple else "list"
        return f"{name}s" if many else f"a {name} of {describe(inside[0], many=True)}"
    if origin is Mapping or hint is Mapping:
        return "mappings" if many else "a mapping"
    if origin is Callable or hint is Callable:
        return "functions" if many else "a function"
    if hint is Path:
        return "paths" if many else "a path"
    if hint in _SINGULAR:
        return _PLURAL[hint] if many else _SINGULAR[hint]
    name = getattr(hint, "__name__", str(hint))
    return name if many else f"{'an' if name[0] in 'AEIO' else 'a'} {name}"
