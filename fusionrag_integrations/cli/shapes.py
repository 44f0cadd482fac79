"""The options of commands that measure speed: which model or shape, on what, in which dtype."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fusionrag_integrations.cli.console import err
from fusionrag_integrations.cli.models import MODEL_HELP, find_model
from fusionrag_integrations.cli.numbers import count
from fusionrag_integrations.errors import InvalidInputError

if TYPE_CHECKING:
    from fusionrag_integrations.execution.hf.model import CausalModel
    from fusionrag_integrations.store.calibration import Calibration

shape_option = click.option(
    "--config",
    "shape",
    help="Random weights of a known shape: qwen2.5-0.5b, qwen2.5-7b, qwen2.5-14b, mistral-7b, "
    "llama-3.1-8b; or demo.  [default: demo]",
)
model_option = click.option("--model", help=f"In the place of --config. {MODEL_HELP}")
device_option = click.option(
    "--device", default="auto", show_default=True, help="cuda where there is one; or cpu."
)
dtype_option = click.option(
    "--dtype", default="auto", show_default=True, help="float32, bfloat16 or float16."
)
repeat_option = click.option(
    "--repeat", type=count(), default=5, show_default=True, help="Calls of each."
)


def load_model(shape: str | None, model: str | None, device: str, dtype: str) -> CausalModel:
    """A model of a shape, or one by name; the demo's where neither is given."""
    from fusionrag_integrations.bench.shapes import model_of_shape
    from fusionrag_integrations.execution.hf.model import CausalModel

    if shape is not None and model is not None:
        raise InvalidInputError("Give --config or --model, not both.")
    with err.status("Loading the model"):
        if shape is not None and shape != "demo":
            return model_of_shape(shape, device, dtype)
        return CausalModel.load(find_model(model), device, dtype)


def stored_calibration(model: CausalModel) -> Calibration | None:
    """What was measured of the model for its selector, where it is beside it."""
    from fusionrag_integrations.prompt import ingest_surroundings
    from fusionrag_integrations.store.calibration import read_calibration
    from fusionrag_integrations.store.layout import CALIBRATION_FILE

    path = model.directory / CALIBRATION_FILE
    signature = model.signature(ingest_surroundings(model.tokenizer)) if path.exists() else ""
    return read_calibration(path, signature)
