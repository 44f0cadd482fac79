"""What users give, held against the annotations of what they give it to: one boundary for all.

Pydantic compares, strictly: an int will do for a float, a bool for neither. Refusals are this
package's `InvalidInputError`; they say what was given and what is accepted. Leaf file: imports
nothing of ours but errors.
"""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from decimal import Decimal
from difflib import get_close_matches
from functools import cache, partial, wraps
from inspect import Parameter, signature
from math import isinf
from numbers import Real
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin
from typing import get_type_hints as hints_of

from fusionrag_integrations.errors import InvalidInputError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Given = ParamSpec("Given")
Made = TypeVar("Made")

SHOWN = 80  # characters of a value in a message
ALIASES = {"max_new_tokens": "max_tokens"}  # of other libraries, where the meaning is the same
_INSTEAD = {
    "do_sample": "Give temperature, above 0 to sample.",
    "generate_kwargs": "Give each of its entries as a setting of its own.",
    "model_kwargs": "They belong to loading the model: FusionEngine.from_pretrained.",
    "pipeline_kwargs": "Give each of its entries as a setting of its own.",
    "search_kwargs": "Give each of its entries as an argument of its own.",
    "tool_choice": "Give it to bind_tools.",
}
_SINGULAR = {bool: "True or False", int: "a whole number", float: "a number", str: "a string"}
_NUMBERS = frozenset({bool, int, float})
_PLURAL = {bool: "booleans", int: "whole numbers", float: "numbers", str: "strings"}


def check_fields(settings: Any) -> None:
    """Hold a frozen dataclass's fields against their annotations; ints among floats become floats.

    For `__post_init__`. Raises `InvalidInputError`.
    """
    kind: Any = type(settings)
    for name, hint in _field_hints(kind).items():
        object.__setattr__(settings, name, checked_value(name, getattr(settings, name), hint))


def checked(
    *, leave: Collection[str] = ()
) -> Callable[[Callable[Given, Made]], Callable[Given, Made]]:
    """A function whose arguments are held against their annotations before it runs.

    leave: arguments that it checks itself. Elements of an iterable that isn't a list or tuple are
    checked as they come. Calls raise `InvalidInputError`, for names that it doesn't have too.
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
    """The value, which `hint` accepts. Raises `InvalidInputError`, which calls it by `name`."""
    if get_origin(hint) is Iterable:
        return _checked_items(name, value, get_args(hint)[0])
    plain = _plain(value, hint)
    if not _fits(plain, hint):
        raise InvalidInputError(_refusal(name, value, hint))
    _check_path(name, plain, hint)
    _check_texts(name, plain, hint)
    return float(plain) if type(plain) is int and _wants(hint, float, int) else plain


def holds_several(value: object) -> bool:
    """Whether something is an iterable of things, and not one thing that can be iterated over."""
    from pydantic import BaseModel

    if isinstance(value, str | bytes | Mapping | BaseModel):
        return False
    try:
        iter(value)  # type: ignore[call-overload]
    except TypeError:  # an array without axes has the method, but can't be iterated over
        return False
    return True


def check_text(name: str, text: str) -> None:
    """Raises `InvalidInputError` for half a surrogate pair, which no text in UTF-8 can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"{name} holds half a surrogate pair at character {error.start}; decode its source "
            "again, or replace that character."
        ) from error


def refuse_unknown(owner: str, given: Iterable[str], known: Collection[str]) -> None:
    """Raises `InvalidInputError` for names that aren't known, with the one that may be meant."""
    for name in given:
        if name not in known:
            raise InvalidInputError(
                f"{owner} takes no {name!r}. {_likely(name, known)}"
                f"Accepted are {', '.join(sorted(known))}."
            )


def parse_json(text: str | bytes, *, finite: bool = False) -> Any:
    """What a JSON text says. Raises `ValueError`, for one that is nested too deep as well.

    finite: refuse NaN and infinities too. Python writes and reads them, but JSON has none.
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


def renamed(given: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """What was given, with aliases under the names that are known here.

    Raises `InvalidInputError` where a value was given by both names.
    """
    names = {name: ALIASES[name] for name in given if ALIASES.get(name) in known}
    names = {name: known_as for name, known_as in names.items() if name not in known}
    for name, known_as in names.items():
        if known_as in given:
            raise InvalidInputError(f"{name} and {known_as} are the same; give one of them.")
    return {names.get(name, name): value for name, value in given.items()}


def _likely(name: str, known: Collection[str]) -> str:
    if name in _INSTEAD:
        return f"{_INSTEAD[name]} "
    ends_alike = [k for k in known if name.endswith(f"_{k}") or k.endswith(f"_{name}")]
    near = get_close_matches(name, known, n=1) or ends_alike[:1]
    return f"Did you mean {near[0]!r}? " if near else ""


def _checked_items(name: str, value: Any, hint: Any) -> Any:
    """An iterable whose elements `hint` accepts; a string or a model's fields are none."""
    if not holds_several(value):
        raise InvalidInputError(f"{name} is {shown(value)}; give {_words(list[hint])}.")

    def each() -> Iterator[Any]:
        for item in value:
            plain = _plain(item, hint)
            if not _fits(plain, hint):
                raise InvalidInputError(f"{name} holds {shown(item)}; give {_words(list[hint])}.")
            _check_path(name, plain, hint)
            _check_texts(name, plain, hint)
            yield plain

    return list(each()) if isinstance(value, list | tuple) else each()


def _check_path(name: str, value: Any, hint: Any) -> None:
    """Raises `InvalidInputError` for what no file can be called: nothing, a null byte, too long."""
    if Path not in _parts(hint) or not isinstance(value, str | Path):
        return
    if value == "":
        raise InvalidInputError(f"{name} is empty; give {_words(hint)}, '.' for this directory.")
    try:
        os.lstat(value)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            f"{name} is {shown(value)}, which can't be a path ({error.__class__.__name__}); give "
            f"{_words(hint)}."
        ) from error


def _check_texts(name: str, value: Any, hint: Any) -> None:
    """Hold a text, or each of several, against `check_text`; names of files may be no Unicode."""
    if Path in _parts(hint):
        return
    texts = value if isinstance(value, list | tuple) else [value]
    for text in texts:
        if isinstance(text, str):
            check_text(name, text)


def _fits(value: Any, hint: Any) -> bool:
    return any(_fits_part(value, part) for part in _parts(hint))


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

        return TypeAdapter(InstanceOf[hint])  # by its own schema a class may accept anything
    return TypeAdapter(hint, config=ConfigDict(strict=True, arbitrary_types_allowed=True))


@cache
def _field_hints(kind: type[Any]) -> dict[str, Any]:
    """Annotations of a dataclass's fields."""
    hints = hints_of(kind)
    return {field.name: hints[field.name] for field in fields(kind) if field.init}


@cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Annotations of a function's arguments."""
    return {name: hint for name, hint in hints_of(function).items() if name != "return"}


def _plain(value: Any, hint: Any) -> Any:
    """Where numbers are wanted, those of other libraries, such as NumPy's, as Python's."""
    parts = _parts(hint)
    if _NUMBERS.intersection(parts):
        return _plain_number(value)
    within = {get_args(part)[:1] for part in parts if get_origin(part) in (list, tuple, Sequence)}
    if type(value) in (list, tuple) and any(_NUMBERS.issuperset(inside) for inside in within):
        return type(value)(map(_plain_number, value))
    return value


def _plain_number(value: Any) -> Any:
    if getattr(value, "shape", None) == () and hasattr(value, "item"):  # an array without axes
        value = value.item()
    if isinstance(value, bool):
        return value
    with suppress(TypeError):
        return operator.index(value)
    return float(value) if isinstance(value, Real | Decimal) else value


def _wants(hint: Any, kind: type, but_not: type) -> bool:
    kinds = get_args(hint) or (hint,)
    return kind in kinds and but_not not in kinds


def _refusal(name: str, value: Any, hint: Any) -> str:
    choices = next((get_args(h) for h in _parts(hint) if get_origin(h) is Literal), None)
    if choices and isinstance(value, str):
        return f"Unknown {name} {value!r}; choose one of {', '.join(choices)}."
    return f"{name} is {shown(value)}; give {_words(hint)}."


def shown(value: Any) -> str:
    """A value as messages show it: not bytes, which may be a secret, nor all of a long text."""
    if isinstance(value, bytes | bytearray):
        return f"a {type(value).__name__}"
    try:
        shown = repr(value)
    except Exception:  # noqa: BLE001 the value is the user's: nested too deep, or worse
        return f"a {type(value).__name__} that can't be shown"
    return shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}… (a {type(value).__name__})"


def _parts(hint: Any) -> Sequence[Any]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _words(hint: Any, many: bool = False) -> str:
    """What a hint accepts, in words."""
    parts = [part for part in _parts(hint) if part is not NoneType]
    said = " or ".join(dict.fromkeys(map(partial(_word, many=many), parts)))
    return f"{said}, or None" if NoneType in _parts(hint) else said


def _word(hint: Any, many: bool) -> str:
    origin, inside = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, inside))}"
    if origin in (tuple, list, Sequence):
        name = "tuple" if origin is tuple else "list"
        return f"{name}s" if many else f"a {name} of {_words(inside[0], many=True)}"
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
