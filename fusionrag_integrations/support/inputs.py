"""Checks what users give against the type hints of what they give it to.

Pydantic validates it strictly: an int is accepted as a float, a bool as neither. The errors are
`InvalidInputError`, and say what was given and what is accepted.
"""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from decimal import Decimal
from functools import cache, wraps
from inspect import Parameter, signature
from math import isinf
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, get_args, get_origin
from typing import get_type_hints as hints_of

from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.support.hints import describe, members
from fusionrag_integrations.support.names import refuse_unknown

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Given = ParamSpec("Given")
Made = TypeVar("Made")

SHOWN = 80  # characters of a value that a message shows
INTEGERS = 1 << 63  # on either side of 0: those that databases, tensors and JSON's readers hold
_NUMBERS = frozenset({bool, int, float})


def check_fields(settings: Any) -> None:
    """Check a frozen dataclass's fields against their type hints; ints become floats where hinted.

    Call it from `__post_init__`. Raises `InvalidInputError`.
    """
    kind: Any = type(settings)
    for name, hint in _field_hints(kind).items():
        object.__setattr__(settings, name, checked_value(name, getattr(settings, name), hint))


def checked(
    *, leave: Collection[str] = ()
) -> Callable[[Callable[Given, Made]], Callable[Given, Made]]:
    """Decorate a function: its arguments are checked against their type hints before it runs.

    leave: arguments that it checks itself. Elements of an iterable that isn't a list or tuple are
    checked while it is iterated over. Calls raise `InvalidInputError`, also for unknown arguments.
    """

    def decorate(function: Callable[Given, Made]) -> Callable[Given, Made]:
        given = signature(function)
        kinds = {parameter.kind for parameter in given.parameters.values()}
        names = [name for name in given.parameters if name not in ("self", "cls")]

        @wraps(function)
        def call(*args: Given.args, **kwargs: Given.kwargs) -> Made:
            if Parameter.VAR_KEYWORD not in kinds:
                refuse_unknown(function.__qualname__, kwargs, names)
            bound = given.bind(*args, **kwargs)
            for name, hint in _hints(function).items():
                if name in bound.arguments and name not in leave:
                    value = checked_value(name, bound.arguments[name], hint)
                    bound.arguments[name] = value
            return function(*bound.args, **bound.kwargs)

        return call

    return decorate


def checked_value(name: str, value: Any, hint: Any) -> Any:
    """The value, if `hint` accepts it. name: for messages. Raises `InvalidInputError`."""
    if get_origin(hint) is Iterable:
        return _checked_items(name, value, get_args(hint)[0])
    plain = _plain(value, hint)
    if not _fits(plain, hint):
        raise InvalidInputError(_refusal(name, value, hint))
    if type(plain) is int and not -INTEGERS <= plain < INTEGERS:
        raise InvalidInputError(f"{name} is {shown(value)}; it must fit 64 bits, with its sign.")
    _check_path(name, plain, hint)
    _check_texts(name, plain, hint)
    kinds = members(hint)
    return float(plain) if type(plain) is int and float in kinds and int not in kinds else plain


def holds_several(value: object) -> bool:
    """Whether a value is a collection of elements; strings, mappings and models count as one."""
    from pydantic import BaseModel

    if isinstance(value, str | bytes | Mapping | BaseModel):
        return False
    try:
        iter(value)  # type: ignore[call-overload]
    except TypeError:  # a 0-d array has `__iter__`, and raises
        return False
    return True


def check_text(name: str, text: str) -> None:
    """Raises `InvalidInputError` for a lone surrogate, which UTF-8 can't encode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"{name} holds half a surrogate pair at character {error.start}; decode its source "
            "again, or replace that character."
        ) from error


def parse_json(text: str | bytes, *, finite: bool = False) -> Any:
    """Parse JSON. Raises `ValueError`, also for a text that is nested too deep.

    finite: refuse NaN and infinities, which Python reads and writes, but JSON doesn't have.
    """
    strict: dict[str, Any] = {"parse_constant": _no_number, "parse_float": _finite}
    try:
        return json.loads(text, **(strict if finite else {}))
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def _no_number(constant: str) -> float:
    raise ValueError(f"{constant} is no number in JSON")


def _finite(digits: str) -> float:
    if isinf(number := float(digits)):
        raise ValueError(f"{digits} is too large a number")
    return number


def _checked_items(name: str, value: Any, hint: Any) -> Any:
    """The iterable, whose elements `hint` accepts: a list if it is a list or tuple, else lazy."""
    if not holds_several(value):
        raise InvalidInputError(f"{name} is {shown(value)}; give {describe(list[hint])}.")

    def each() -> Iterator[Any]:
        for item in value:
            plain = _plain(item, hint)
            if not _fits(plain, hint):
                raise InvalidInputError(f"{name} holds {shown(item)}; give {describe(list[hint])}.")
            _check_path(name, plain, hint)
            _check_texts(name, plain, hint)
            yield plain

    return list(each()) if isinstance(value, list | tuple) else each()


def _check_path(name: str, value: Any, hint: Any) -> None:
    """Raises `InvalidInputError` for an empty path, one with a null byte, or one too long."""
    if Path not in members(hint) or not isinstance(value, str | Path):
        return
    if value == "":
        raise InvalidInputError(f"{name} is empty; give {describe(hint)}, '.' for this directory.")
    try:
        os.lstat(value)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            f"{name} is {shown(value)}, which can't be a path ({error.__class__.__name__}); give "
            f"{describe(hint)}."
        ) from error


def _check_texts(name: str, value: Any, hint: Any) -> None:
    """Apply `check_text` to a string, or to each of several; paths may be invalid Unicode."""
    if Path in members(hint):
        return
    texts = value if isinstance(value, list | tuple) else [value]
    for text in texts:
        if isinstance(text, str):
            check_text(name, text)


def _fits(value: Any, hint: Any) -> bool:
    return any(_fits_part(value, part) for part in members(hint))


def _fits_part(value: Any, hint: Any) -> bool:
    from pydantic import ValidationError

    try:
        _adapter(hint).validate_python(value)
    except (ValidationError, RecursionError):
        return False
    return True


@cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    from pydantic import ConfigDict, TypeAdapter

    if isinstance(hint, type) and hint.__module__ != "builtins":
        from pydantic import InstanceOf

        return TypeAdapter(InstanceOf[hint])  # a class's own schema may accept other values
    return TypeAdapter(hint, config=ConfigDict(strict=True, arbitrary_types_allowed=True))


@cache
def _field_hints(kind: type[Any]) -> dict[str, Any]:
    """Type hints of a dataclass's fields."""
    hints = hints_of(kind)
    return {field.name: hints[field.name] for field in fields(kind) if field.init}


@cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Type hints of a function's arguments."""
    return {name: hint for name, hint in hints_of(function).items() if name != "return"}


def _plain(value: Any, hint: Any) -> Any:
    """The value with numbers of other libraries, such as NumPy's, as Python's, where hinted."""
    parts = members(hint)
    if _NUMBERS.intersection(parts):
        return _plain_number(value)
    within = {get_args(part)[:1] for part in parts if get_origin(part) in (list, tuple, Sequence)}
    if type(value) in (list, tuple) and any(_NUMBERS.issuperset(inside) for inside in within):
        return type(value)(map(_plain_number, value))
    return value


def _plain_number(value: Any) -> Any:
    if getattr(value, "shape", None) == () and hasattr(value, "item"):  # a 0-d array
        value = value.item()
    if isinstance(value, bool):
        return value
    with suppress(TypeError):
        return operator.index(value)
    return float(value) if isinstance(value, Real | Decimal) else value


def _refusal(name: str, value: Any, hint: Any) -> str:
    choices = next((get_args(h) for h in members(hint) if get_origin(h) is Literal), None)
    if choices and isinstance(value, str):
        return f"Unknown {name} {value!r}; choose one of {', '.join(choices)}."
    return f"{name} is {shown(value)}; give {describe(hint)}."


def shown(value: Any) -> str:
    """A value as messages show it: long ones shortened, and no bytes, which may be secret."""
    if isinstance(value, bytes | bytearray):
        return f"a {type(value).__name__}"
    try:
        shown = repr(value)
    except Exception:  # noqa: BLE001 a user's `__repr__` may raise anything
        return f"a {type(value).__name__} that can't be shown"
    return shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}… (a {type(value).__name__})"
