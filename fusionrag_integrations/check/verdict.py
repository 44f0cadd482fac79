"""What was measured -> what to set, in words. All rules are here; the first that holds speaks."""

from __future__ import annotations

from collections.abc import Sequence

from fusionrag_integrations.check.report import CheckRow
from fusionrag_integrations.types import AnswerSettings

DEFAULT = AnswerSettings().ratio
ENOUGH = 0.9  # of answers equal full attention's: the default may stay
GAIN = 1.1  # a speed-up below this isn't one
CLOSE = 0.05  # of what is recovered: less tells no two ratios apart
FEW = 10  # questions, fewer of which show little


def verdict(exact: bool, rows: Sequence[CheckRow], questions: int, prompt_tokens: int) -> str:
    """What to set. rows: as in `CheckReport`."""
    told = _setting(exact, rows, prompt_tokens)
    if exact and questions < FEW:
        asked = "1 question" if questions == 1 else f"{questions} questions"
        told += f" Only {asked} could be asked, which shows little: check again with more."
    return told


def _setting(exact: bool, rows: Sequence[CheckRow], prompt_tokens: int) -> str:
    if not exact:
        return (
            "Not exact: with everything recomputed, the model doesn't say what it says by itself. "
            "Set kv='none', and report the model, its dtype and the device."
        )
    plain, *fused = rows
    default = next(row for row in fused if row.ratio == DEFAULT)
    best = next((row for row in fused if _as_good(row, default)), default)
    if best.speedup < GAIN:
        return (
            f"Prompts here are too short to gain: at {prompt_tokens:,} tokens the first token "
            f"comes {best.speedup:.1f} times as soon with ratio={best.ratio:g}. Set kv='none', or "
            "retrieve more chunks."
        )
    equal = (
        f"{default.equal_in_words} of answers equal full attention's, {plain.equal:.0%} with plain "
    )
    if default.equal < ENOUGH:
        return (
            f"Even at {DEFAULT:.0%} only {equal}reuse; of their tokens {default.agreement:.0%} are "
            "the same. Set ratio=0.3, or kv='none' where every answer must be the same."
        )
    if best is not default:
        return (
            f"ratio={best.ratio:g} is as good here and quicker: {best.equal_in_words} of answers "
            f"equal full attention's, and the first token comes {best.speedup:.1f} times sooner, "
            f"not {default.speedup:.1f}. Set ratio={best.ratio:g}."
        )
    return (
        f"With ratio={DEFAULT:g}, {equal}reuse, and the first token comes {default.speedup:.1f} "
        "times sooner: keep the default."
    )


def _as_good(row: CheckRow, default: CheckRow) -> bool:
    """Whether a lower ratio loses nothing, and is quicker by more than two timings differ."""
    behind = (default.recovered or 0.0) - (row.recovered or 0.0)
    quicker = row.speedup >= GAIN * default.speedup
    return quicker and row.equal >= default.equal and behind <= CLOSE
