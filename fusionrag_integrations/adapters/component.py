"""What the frameworks' components share as pydantic models: they refuse unknown arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError, model_validator
from pydantic_core import ErrorDetails

from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.support.inputs import checked_value, shown
from fusionrag_integrations.support.names import refuse_unknown, resolve_aliases

_OURS = __name__.partition(".")[0]


class Component(BaseModel):
    """Raises `InvalidInputError` for arguments that aren't fields, and for invalid values.

    The frameworks check the fields of their own classes themselves.
    """

    if not TYPE_CHECKING:  # type checkers see the fields as arguments

        def __init__(self, **given: Any) -> None:
            try:
                super().__init__(**given)
            except ValidationError as error:
                raise _refusal(type(self).__name__, error.errors()[0]) from error

    @model_validator(mode="before")
    @classmethod
    def _check_given(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        fields = cls.model_fields
        known = {*fields, *(field.alias for field in fields.values() if field.alias)}
        given = resolve_aliases(given, known)
        refuse_unknown(cls.__name__, given, known)
        ours = {
            name
            for parent in cls.__mro__
            if parent.__module__.partition(".")[0] == _OURS
            for name in vars(parent).get("__annotations__", ())
        }
        return {
            name: checked_value(name, _listed(value), fields[name].annotation)
            if name in ours
            else value
            for name, value in given.items()
        }


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _refusal(owner: str, error: ErrorDetails) -> InvalidInputError:
    inner = error.get("ctx", {}).get("error")
    if isinstance(inner, InvalidInputError):
        return inner
    name = ".".join(map(str, error["loc"]))
    if error["type"] == "missing":
        return InvalidInputError(f"{owner} needs {name}: {owner}({name}=...).")
    return InvalidInputError(f"{name} is {shown(error['input'])}: {error['msg']}.")
