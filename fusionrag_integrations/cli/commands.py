"""A group of commands that tells what went wrong in one line."""

from __future__ import annotations

from typing import Any

import click

from fusionrag_integrations.cli.console import err
from fusionrag_integrations.cli.signals import Terminated
from fusionrag_integrations.errors import FusionRAGError


class Commands(click.Group):
    """Turns the package's own errors into one clear line and exit status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (FusionRAGError, OSError, UnicodeError) as error:  # the last two: paths, and a disk
            err.print(f"[red]error:[/red] {type(error).__name__}: ", end="")
            # Names of files may be no Unicode.
            err.print(str(error).encode(errors="backslashreplace").decode(), markup=False)
            ctx.exit(1)
        except KeyboardInterrupt as error:
            err.print("Interrupted. What is on disk is kept: run the command again to go on.")
            ctx.exit(143 if isinstance(error, Terminated) else 130)
