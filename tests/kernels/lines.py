"""Which lines of a kernel ran under Triton's interpreter."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fusionrag_integrations.attention

KERNELS = Path(fusionrag_integrations.attention.__file__).parent


class Lines:
    """While it is entered, notes the lines that run in functions of these names."""

    def __init__(self, *names: str) -> None:
        self._run: dict[str, set[int]] = {name: set() for name in names}

    def __enter__(self) -> Lines:
        sys.settrace(self._called)
        return self

    def __exit__(self, *error: object) -> None:
        sys.settrace(None)

    def check(self, *kernels: Any, left_out: Sequence[str] = ()) -> None:
        """Every statement of these ran, but for those that begin with what is left out."""
        for kernel in kernels:
            run = self._run[kernel.fn.__name__]
            source, first = inspect.getsourcelines(kernel.fn)
            body = [
                first + i
                for i, line in enumerate(source)
                if _is_statement(line) and not line.strip().startswith(tuple(left_out))
            ]
            assert body
            missed = [source[number - first].strip() for number in body if number not in run]
            assert not missed, (kernel.fn.__name__, missed)

    def _called(self, frame: Any, event: str, argument: object) -> Callable[..., Any] | None:
        name = frame.f_code.co_name
        if name not in self._run or Path(frame.f_code.co_filename).parent != KERNELS:
            return None

        def each(frame: Any, event: str, argument: object) -> Any:
            if event == "line":
                self._run[name].add(frame.f_lineno)
            return each

        return each


def _is_statement(line: str) -> bool:
    """The first line of a statement in a kernel; `else` and closing brackets are none."""
    text = line.strip()
    own = line.startswith("    ") and text and text[0].isalpha()
    continues = text.endswith(",") or text.startswith(("else", "power.to", "keys +", "values +"))
    return bool(own) and not continues and ("=" in text or text.startswith("tl.store"))
