"""Docstrings explain a parameter behind its name and a colon; the site sets the name in bold."""

from __future__ import annotations

import re
from typing import Any

from griffe import Class, Extension, Function, Object


class ParameterNames(Extension):
    """Marks the names of parameters and fields where a docstring explains them."""

    def on_function(self, *, func: Function, **kwargs: Any) -> None:
        mark(func, {parameter.name for parameter in func.parameters})

    def on_class(self, *, cls: Class, **kwargs: Any) -> None:
        mark(cls, set(cls.attributes))


def mark(described: Object, names: set[str]) -> None:
    """Set names that stand before a colon in bold, several between commas too."""
    if described.docstring is None or not names:
        return
    name = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    listed = re.compile(rf"(?<![\w`])(?:(?:{name}), )*(?:{name})(?=:\s)")
    described.docstring.value = listed.sub(
        lambda found: ", ".join(f"**{one}**" for one in found[0].split(", ")),
        described.docstring.value,
    )
