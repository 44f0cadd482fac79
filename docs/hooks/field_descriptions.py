"""Fields of pydantic models are documented where they are declared: by `Field(description=...)`."""

from __future__ import annotations

import ast
from typing import Any

from griffe import Attribute, Docstring, ExprCall, ExprKeyword, Extension


class FieldDescriptions(Extension):
    """Shows a field's description as its docstring, and its default as its value."""

    def on_attribute_instance(self, *, attr: Attribute, **kwargs: Any) -> None:
        call = attr.value
        if not isinstance(call, ExprCall) or call.canonical_name != "Field":
            return
        given = {a.name: a.value for a in call.arguments if isinstance(a, ExprKeyword)}
        if "description" in given:
            description = ast.literal_eval(str(given["description"]))
            attr.docstring = Docstring(description, parent=attr)
        attr.labels -= {"class-attribute", "instance-attribute"}  # neither says what a field is
        defaults = [a for a in call.arguments if not isinstance(a, ExprKeyword)]
        defaults += [given[name] for name in ("default", "default_factory") if name in given]
        attr.value = next(iter(defaults), None)
