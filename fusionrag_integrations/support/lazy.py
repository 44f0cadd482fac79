"""Names of a package that are imported on first use."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any


def resolve(package: str, module_of: Mapping[str, str], name: str) -> Any:
    """The value of `package.name`, imported from the module that defines it.

    module_of: the defining modules, relative to `fusionrag_integrations`. Raises `AttributeError`
    for a name that isn't in it.
    """
    if name not in module_of:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    root = __name__.partition(".")[0]
    return getattr(import_module(f"{root}.{module_of[name]}"), name)
