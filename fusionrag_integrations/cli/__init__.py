"""The `fusionrag` command.

Heavy modules are imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper
from typing import Any

import click

from fusionrag_integrations.cli import check, formats, measure, speed, store
from fusionrag_integrations.cli.console import err
from fusionrag_integrations.errors import FusionRAGError


class _Commands(click.Group):
    """Turns the package's own errors into one clear line and exit status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (FusionRAGError, OSError, UnicodeError) as error:  # the last two: paths, and a disk
            err.print(f"[red]error:[/red] {type(error).__name__}: ", end="")
            # Names of files may be no Unicode.
            err.print(str(error).encode(errors="backslashreplace").decode(), markup=False)
            ctx.exit(1)
        except KeyboardInterrupt:
            err.print("Interrupted. What is on disk is kept: run the command again to go on.")
            ctx.exit(130)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fusionrag-integrations")
def main() -> None:
    """Answer questions from precomputed, fused KV caches of your chunks.

    \b
    First steps:
      fusionrag demo                              see it work, with a pretrained model
      fusionrag index docs/ --store my-store      chunk, embed and prefill your files
      fusionrag ask "..." --store my-store        retrieve and answer
    """
    # Libraries' progress bars would be drawn over ours. Read when tqdm is first imported.
    os.environ.setdefault("TQDM_DISABLE", "1")
    if isinstance(sys.stdout, TextIOWrapper):  # names of files may be no Unicode
        sys.stdout.reconfigure(errors="backslashreplace")


for command in (
    *(store.index, store.ask, store.delete, store.demo, store.inspect, store.verify, store.repair),
    *(check.check, measure.calibrate, measure.bench),
):
    main.add_command(command)
for command in (
    *(speed.ttft, speed.kernel, speed.offline, speed.memory, speed.store, speed.traffic),
    formats.formats,
):
    measure.bench.add_command(command)
