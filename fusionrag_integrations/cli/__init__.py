"""The `fusionrag` command.

Heavy modules are imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper

import click

from fusionrag_integrations.cli import (
    ask,
    calibrate,
    check,
    damage,
    demo,
    quality,
    serve,
    store,
    throughput,
    ttft,
    versions,
)
from fusionrag_integrations.cli.commands import Commands


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fusionrag-integrations")
def main() -> None:
    """Answer questions from precomputed, fused KV caches of your chunks.

    \b
    First steps:
      fusionrag demo                              see it work, with a pretrained model
      fusionrag index docs/ --store my-store      chunk, embed and prefill your files
      fusionrag ask "..." --store my-store        retrieve and answer
      fusionrag serve --store my-store            answer over HTTP
    """
    # Libraries' progress bars would be drawn over ours. Read when tqdm is first imported.
    os.environ.setdefault("TQDM_DISABLE", "1")
    if isinstance(sys.stdout, TextIOWrapper):  # names of files may be no Unicode
        sys.stdout.reconfigure(errors="backslashreplace")


@click.group()
def bench() -> None:
    """Measure quality and speed against every baseline, on your own model and questions."""


bench.add_command(quality.quality)
bench.add_command(ttft.ttft)
bench.add_command(throughput.throughput)
for command in (
    *(store.index, ask.ask, serve.serve, store.delete, demo.demo, store.inspect),
    *(damage.verify, damage.repair, versions.reindex, versions.collect),
    *(check.check, calibrate.calibrate, bench),
):
    main.add_command(command)
