"""What this process holds of the system, calls in forked children, and modules run as programs."""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 30  # seconds, after which a child counts as hanging
ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Held:
    """descriptors: open files. threads: the system's, not Python's alone. memory: in MB, resident.

    directories: of ours among the temporary ones.
    """

    descriptors: int
    threads: int
    memory: int
    directories: int

    @classmethod
    def now(cls) -> Held:
        gc.collect()
        time.sleep(0.1)  # threads that were told to end
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return cls(
            descriptors=len(list(Path("/proc/self/fd").iterdir())),
            threads=len(list(Path("/proc/self/task").iterdir())),
            memory=pages * os.sysconf("SC_PAGE_SIZE") >> 20,
            directories=len(list(Path(tempfile.gettempdir()).glob("fusionrag-*"))),
        )


@contextmanager
def quick_collection() -> Iterator[None]:
    """What there is by now is not looked at by `gc.collect`, which takes a second otherwise."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def in_child(call: Callable[[], object]) -> str:
    """What a call gives in a forked child, or the error that it raises, as text.

    Raises TimeoutError where the child hangs.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            faulthandler.dump_traceback_later(PATIENCE - 5)
            signal.alarm(PATIENCE)
            said = str(call())
        except BaseException as error:  # noqa: BLE001 -- all that a child can do is tell
            said = f"{type(error).__name__}: {error}"
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as told:
        said = told.read()
    if os.waitpid(child, 0)[1]:
        raise TimeoutError(f"The child hangs, or was killed; it said {said!r}.")
    return said


def run_module(
    module: str, *arguments: object, before: Sequence[object] = ()
) -> subprocess.CompletedProcess[str]:
    """`python -m module` with these arguments, as one that forks is run; it must succeed.

    before: what the command begins with, such as `unshare`.
    """
    run = subprocess.run(
        [*map(str, before), sys.executable, "-m", module, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | {"TOKENIZERS_PARALLELISM": "false"},
    )
    assert run.returncode == 0, run.stderr
    return run
