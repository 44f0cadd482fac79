"""The command that calibrates a model: calibrate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fusionrag_integrations.cli.console import FilePath, json_option, out, print_json
from fusionrag_integrations.cli.suites import asks, directory, opened
from fusionrag_integrations.errors import InvalidInputError

if TYPE_CHECKING:
    from fusionrag_integrations.bench.suites import Suite


@click.command()
@asks(seed=1_000_000)
@click.option(
    "--out",
    "target",
    type=FilePath(),
    required=True,
    help="A store's directory or the model's own: calibration.json is written there.",
)
@json_option
def calibrate(
    make_suite: Callable[[], Suite],
    model: str | None,
    seed: int,
    embedding: str | None,
    target: Path,
    as_json: bool,
) -> None:
    """Measure which layers and signals tell this model best what to recompute.

    No accepted answers are needed. Don't calibrate on questions that you report on. Also measured:
    how long a prompt must be here for reuse to be quicker than a full prefill.
    """
    from fusionrag_integrations.bench.break_even import measure_break_even
    from fusionrag_integrations.bench.calibrate import calibrate as measure
    from fusionrag_integrations.bench.neighbours import make_policy
    from fusionrag_integrations.execution.devices import device_name
    from fusionrag_integrations.store.calibration import read_calibration, write_calibration
    from fusionrag_integrations.store.layout import CALIBRATION_FILE
    from fusionrag_integrations.support.atomic_files import check_output

    if not target.is_dir():
        raise InvalidInputError(
            f"There is no directory {target}; give --out a store's, or the model's own."
        )
    check_output(target / CALIBRATION_FILE)
    suite = make_suite()
    with (
        directory(None) as path,
        opened(model, suite, embedding, path) as (engine, progress),
    ):
        signature = engine.store.catalog.info.signature
        read_calibration(target / CALIBRATION_FILE, signature)  # a damaged file is refused first
        engine.ingest(suite.documents, neighbours=make_policy("wrong")(engine), progress=progress)
        prompts = [question.prompt for question in suite.questions(engine)]
        found, measured = measure(
            engine, prompts, lambda done, total: progress("calibrate", done, total)
        )
        tokens, speed = measure_break_even(
            engine.executor.model, found, lambda done, total: progress("speed", done, total)
        )
        device = device_name(engine.model.device)
    measured |= {"dataset": suite.name, "seed": seed, "speed": {device: speed}}
    write_calibration(target / CALIBRATION_FILE, signature, found, measured, {device: tokens})
    if as_json:
        print_json(asdict(found) | {"break_even": {device: tokens}, "measured": measured})
        return
    out.print(f"Layers {', '.join(map(str, found.layers))}, ", end="")
    out.print("whole sentences, " if found.whole_sentences else "single tokens, ", end="")
    out.print(f"sensitivity to the power of {found.sensitivity:g}.")
    out.print(f"On {device} reuse pays from {tokens} tokens on.", markup=False)
    out.print(f"Written to {target / CALIBRATION_FILE}.", markup=False)
