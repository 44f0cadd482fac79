"""Names of arguments: aliases are resolved, unknown ones refused with a suggestion."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from fusionrag_integrations.errors import InvalidInputError

ALIASES = {"max_new_tokens": "max_tokens"}  # other libraries' names for the same
_INSTEAD = {
    "do_sample": "Give temperature, above 0 to sample.",
    "generate_kwargs": "Give each of its entries as a setting of its own.",
    "model_kwargs": "They belong to loading the model: FusionEngine.from_pretrained.",
    "pipeline_kwargs": "Give each of its entries as a setting of its own.",
    "search_kwargs": "Give each of its entries as an argument of its own.",
    "tool_choice": "Give it to bind_tools.",
}


def refuse_unknown(owner: str, given: Iterable[str], known: Collection[str]) -> None:
    """Raises `InvalidInputError` for an unknown name, suggesting the one that may be meant."""
    for name in given:
        if name not in known:
            raise InvalidInputError(
                f"{owner} takes no {name!r}. {_likely(name, known)}"
                f"Accepted are {', '.join(sorted(known))}."
            )


def resolve_aliases(given: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """The arguments, with aliases replaced by the names that are known.

    Raises `InvalidInputError` where both names were given.
    """
    names = {name: ALIASES[name] for name in given if ALIASES.get(name) in known}
    names = {name: name_here for name, name_here in names.items() if name not in known}
    for name, name_here in names.items():
        if name_here in given:
            raise InvalidInputError(f"{name} and {name_here} are the same; give one of them.")
    return {names.get(name, name): value for name, value in given.items()}


def _likely(name: str, known: Collection[str]) -> str:
    if name in _INSTEAD:
        return f"{_INSTEAD[name]} "
    ends_alike = [k for k in known if name.endswith(f"_{k}") or k.endswith(f"_{name}")]
    near = get_close_matches(name, known, n=1) or ends_alike[:1]
    return f"Did you mean {near[0]!r}? " if near else ""
