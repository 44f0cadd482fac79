"""Everything that waits for a GPU, in one call: checks, then times, within a few minutes.

    python -m benchmarks.gpu_suite --out docs/benchmarks/h200

What is done is on disk, as NAME.json each and together in summary.md, whenever it is stopped. The
tests that need a GPU run first; wrong results have no times.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from typing import Any

import click
import torch

from benchmarks.decode_batch import measure_batched_attention, measure_decode_batch
from benchmarks.kernel import HeadShape, measure_kernel
from benchmarks.memory import measure_memory
from benchmarks.offline import measure_decode, measure_offline
from benchmarks.results.tables import kernel_markdown, store_markdown
from benchmarks.store import measure_store
from fusionrag_integrations.bench.served import Tier
from fusionrag_integrations.bench.shapes import model_of_shape, random_dtype
from fusionrag_integrations.bench.strategies import Strategy
from fusionrag_integrations.bench.tables import ttft_markdown
from fusionrag_integrations.bench.ttft import measure_ttft
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.execution.devices import torch_device
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.support.atomic_files import write_output
from fusionrag_integrations.support.inputs import parse_json

logger = logging.getLogger(__name__)

RATIOS = (0.0, 0.05, 0.15, 1.0)
ROOT = Path(__file__).parent.parent
WORKERS = 3  # a file's tests run in, where pytest can
SHAPE = HeadShape(28, 4, 128)  # of attention by itself: Qwen2.5-7B's
REQUESTS = (1, 4, 16)  # that decode at once
KERNEL_RATIOS = (0.0, 0.01, 0.05, 0.15, 0.5, 1.0)
TESTS = (
    "tests/test_cuda.py",
    "tests/test_in_place.py",
    "tests/kernels/test_attention.py",
    "tests/kernels/test_compiled.py",
    "tests/kernels/test_gather.py",
    "tests/kernels/test_segment_attention.py",
    "tests/kernels/test_sparse_attention.py",
)

Result = dict[str, Any]


def check() -> Result:
    """Run the tests that need a GPU; raises `InvalidInputError` where they fail."""
    with ThreadPoolExecutor(len(TESTS)) as pool:  # most of the time is the kernels' compiler's
        processes = list(pool.map(_tested, TESTS))
    if failed := [process.stdout for process in processes if process.returncode]:
        raise InvalidInputError("The tests fail here, so nothing is timed:\n" + "\n".join(failed))
    last = (" ".join(process.stdout.strip().splitlines()[-1:]) for process in processes)
    return {"tests": dict(zip(TESTS, last, strict=True))}


def _tested(path: str) -> subprocess.CompletedProcess[str]:
    # Without the project's own options, whose plugins may not be installed here.
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", path]
    if find_spec("xdist"):
        command += ["-n", str(WORKERS)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def steps(
    model: Callable[[], CausalModel],
    contexts: tuple[int, ...],
    keys: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype,
    repeat: int,
) -> dict[str, Callable[[], Result]]:
    """What is measured, by name, in the order of what matters most."""

    def ttft(tier: Tier) -> Result:
        strategies = [Strategy("full_attention", "none", 1.0)]
        strategies += [Strategy("fusionrag", "isolated", ratio) for ratio in RATIOS]
        return measure_ttft(model(), contexts, strategies, tier, repeat, None, _progress)

    def kernel() -> Result:
        return measure_kernel(SHAPE, keys, KERNEL_RATIOS, dtype, device, repeat, _progress)

    def store() -> Result:
        few = (repeat + 1) // 2
        return measure_store(
            model(), contexts[-1], _progress, parts=("load", "prefetch"), repeat=few
        )

    return {
        "ttft-host": lambda: ttft("host"),
        "ttft-device": lambda: ttft("device"),
        "kernel": kernel,
        "offline": lambda: measure_offline(model(), 256, 10, repeat),
        "decode": lambda: measure_decode(model(), contexts[-1], repeat * 4),
        "decode-batch": lambda: measure_decode_batch(model(), contexts[-1], REQUESTS, repeat * 4),
        "attention-batch": lambda: measure_batched_attention(
            SHAPE, contexts[-1], REQUESTS, dtype, device, repeat
        ),
        "memory": lambda: measure_memory(model(), contexts[-1], 0.15),
        "ttft-disk": lambda: ttft("disk"),
        "store": store,
    }


def run_suite(out: Path, chosen: Mapping[str, Callable[[], Result]], seconds: float) -> list[str]:
    """Run what there is time for; returns the names of what was left out, or failed."""
    out.mkdir(parents=True, exist_ok=True)
    started, left = monotonic(), []
    for name, step in chosen.items():
        if monotonic() - started > seconds:
            left.append(f"{name}: no time left")
            continue
        logger.info("%s, after %.0f s", name, monotonic() - started)
        try:
            result = step()
        except (RuntimeError, InvalidInputError) as error:  # e.g. out of memory: others may fit
            logger.exception("%s failed", name)
            left.append(f"{name}: {error}")
            continue
        write_output(out / f"{name}.json", f"{json.dumps(result, indent=2)}\n".encode())
    write_output(out / "summary.md", summary(out, left).encode())
    return left


def summary(directory: Path, left: list[str]) -> str:
    """The results of a directory as tables."""
    parts = []
    for path in sorted(directory.glob("*.json")):
        result = parse_json(path.read_text())
        parts.append(f"## {path.stem}\n")
        facts = {k: v for k, v in result.items() if k not in ("rows", "fit", "load")}
        parts.append(", ".join(f"{name}: {value}" for name, value in facts.items()) + "\n")
        if path.stem == "store":
            parts.append(store_markdown(result) + "\n")
        elif "rows" in result:
            table = kernel_markdown if path.stem == "kernel" else ttft_markdown
            parts.append(table(result["rows"]) + "\n")
        if result.get("fit"):
            parts.append(f"TTFT as a fixed time, rows and keys: {result['fit']}\n")
    if left:
        parts.append("## Left out\n\n" + "\n".join(f"- {reason}" for reason in left) + "\n")
    return "\n".join(parts)


def _progress(stage: str, done: int, total: int) -> None:
    logger.info("  %s %d/%d", stage, done, total)


@click.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--config", default="qwen2.5-7b", show_default=True, help="A shape, as bench ttft's.")
@click.option("--context", default="4000,27000", show_default=True, help="Tokens of prompts.")
@click.option("--keys", default="4096,32768,131072", show_default=True, help="Of the kernel.")
@click.option("--device", default="auto", show_default=True)
@click.option("--dtype", default="auto", show_default=True)
@click.option("--repeat", default=5, show_default=True)
@click.option("--minutes", default=9.0, show_default=True, help="No step begins later.")
@click.option("--skip-tests", is_flag=True, help="Time without checking first.")
@click.option("--steps", "names", help="Comma-separated, of what is timed.  [default: all]")
def main(
    out: Path,
    config: str,
    context: str,
    keys: str,
    device: str,
    dtype: str,
    repeat: int,
    minutes: float,
    skip_tests: bool,
    names: str | None,
) -> None:
    """Check and time everything that waits for a GPU."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    started = monotonic()
    target = torch_device(device)
    made: list[CausalModel] = []

    def model() -> CausalModel:
        if not made:
            made.append(model_of_shape(config, device, dtype))
        return made[0]

    chosen = steps(
        model,
        tuple(map(int, context.split(","))),
        tuple(map(int, keys.split(","))),
        target,
        random_dtype(dtype, target),
        repeat,
    )
    if names is not None:
        if unknown := set(names.split(",")) - chosen.keys():
            raise click.UsageError(
                f"Unknown steps {', '.join(unknown)}; known: {', '.join(chosen)}."
            )
        chosen = {name: chosen[name] for name in names.split(",")}
    out.mkdir(parents=True, exist_ok=True)
    if not skip_tests:
        write_output(out / "tests.json", f"{json.dumps(check(), indent=2)}\n".encode())
    left = run_suite(out, chosen, minutes * 60 - (monotonic() - started))
    logger.info("Results are in %s.%s", out, "".join(f" Left out: {reason}." for reason in left))


if __name__ == "__main__":
    main()
