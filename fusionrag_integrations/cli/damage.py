"""Commands that find and repair damage to a store: verify, repair."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fusionrag_integrations.cli.console import bars, json_option, out, print_json, store_option
from fusionrag_integrations.errors import KVMissingError
from fusionrag_integrations.store.objects.opening import is_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fusionrag_integrations.store.verify import Problem


@click.command()
@store_option
@json_option
def verify(store: Path | str, as_json: bool) -> None:
    """Check all of a store: catalog, documents, index and KV records. Changes nothing.

    Exit status 1 on a problem; `repair` fixes it.
    """
    from fusionrag_integrations.store.published.verifying import find_damage_at
    from fusionrag_integrations.store.verify import find_damage

    work = partial(find_damage_at, store) if is_url(store) else partial(find_damage, Path(store))
    _say(work, "verify", as_json)


@click.command()
@store_option
@json_option
def repair(store: Path | str, as_json: bool) -> None:
    """Fix what `verify` finds, and leave all else as it is. Needs no model.

    A damaged catalog is rebuilt from the store's other files. KV that is damaged is removed: the
    next `index` computes it again. Exit status 1 where something can't be fixed.
    """
    from fusionrag_integrations.store import repair as room
    from fusionrag_integrations.store.published.verifying import repair_at

    work = partial(repair_at, store) if is_url(store) else partial(room.repair, Path(store))
    _say(work, "repair", as_json)


def _say(work: Callable[..., Iterator[Problem]], name: str, as_json: bool) -> None:
    """Show what is found; exit status 1 if any of it is left."""
    checked = 0

    def step(done: int, total: int) -> None:
        nonlocal checked
        checked = total
        progress(name, done, total)

    with bars() as progress:
        problems = list(work(step))
    left = [problem for problem in problems if not problem.fixed]
    if as_json:
        listed = [asdict(problem) | {"path": str(problem.path)} for problem in problems]
        print_json({"records": checked, "problems": listed})
    else:
        for problem in problems:
            fixed = "fixed: " if problem.fixed else ""
            out.print(f"{fixed}{problem.error}: {problem.message}", markup=False)
        found = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        out.print(f"{checked} records checked, {found}.")
        if any(_is_left_to_index(problem, name) for problem in problems):
            out.print("Run `fusionrag index` again to compute what is missing.")
    if left:
        raise click.exceptions.Exit(1)


def _is_left_to_index(problem: Problem, name: str) -> bool:
    """Whether an ingest puts it right: KV that is missing, as after one that was broken off."""
    if name == "verify":
        return problem.area == "kv" and problem.error == KVMissingError.__name__
    return problem.area in ("kv", "index")
