"""The type of the callback by which long work reports its progress."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, the steps done and the total."""
