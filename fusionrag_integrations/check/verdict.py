"""Measurements -> what to set, as text. All rules are here; the first that holds decides."""

from __future__ import annotations

from collections.abc import Sequence

from fusionrag_integrations.check.report import CheckRow
from fusionrag_integrations.serving.settings import AnswerSettings

DEFAULT = AnswerSettings().ratio
ENOUGH = 0.9  # share of answers equal to full attention's with which the default is good enough
GAIN = 1.1  # the least speed-up that counts
CLOSE = 0.05  # the least difference in `recovered` that counts
FEW = 10  # fewer questions show little


def verdict(
    exact: bool, rows: Sequence[CheckRow], questions: int, prompt_tokens: int, without_kv: int
) -> str:
    """What to set. The arguments are as in `CheckReport`."""
    sentences = [_setting(exact, rows, prompt_tokens)]
    plain, default = rows[0], _default(rows)
    if exact and plain.equal >= default.equal:
        sentences.append(
            f"Plain reuse keeps as many answers here, {plain.equal:.0%}: these questions hardly "
            "show what fused KV and recompute are for."
        )
    if without_kv:
        sentences.append(
            f"KV of {without_kv} of the chunks is missing or damaged, so this isn't what the whole "
            "store gives: `fusionrag verify` says what is wrong, and ingesting again computes it."
        )
    if exact and questions < FEW:
        asked = "1 question was" if questions == 1 else f"{questions} questions were"
        sentences.append(
            f"Only {asked} asked, which shows little: ask more, or check again when the store "
            "holds more."
        )
    return " ".join(sentences)


def _default(rows: Sequence[CheckRow]) -> CheckRow:
    return next(row for row in rows if row.kv == "fused" and row.ratio == DEFAULT)


def _setting(exact: bool, rows: Sequence[CheckRow], prompt_tokens: int) -> str:
    if not exact:
        return (
            "Not exact: with everything recomputed, the model doesn't say what it says by itself. "
            "Set kv='none', and report the model, its dtype and the device."
        )
    plain, *fused = rows
    default = _default(rows)
    best = next((row for row in fused if _as_good(row, default)), default)
    if best.speedup < GAIN:
        return (
            f"Prompts here are too short to gain: at {prompt_tokens:,} tokens the first token "
            f"comes {best.speedup:.2f} times as soon with ratio={best.ratio:g}. Set kv='none', or "
            "retrieve more chunks."
        )
    equal = (
        f"{default.equal_in_words} of answers equal full attention's, {plain.equal:.0%} with plain "
    )
    if default.equal < ENOUGH:
        return (
            f"At {DEFAULT:.0%} {equal}reuse, and of their tokens {default.agreement:.0%} are the "
            "same. Another wording isn't a worse answer: `fusionrag bench quality` tells, with "
            "questions whose answers you know. Set kv='none' where every answer must be the same, "
            "else keep the default."
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
    """Whether a lower ratio loses nothing, and is faster by more than timings vary."""
    quicker = row.speedup >= GAIN * default.speedup
    lost = (default.recovered or 0.0) - (row.recovered or 0.0)
    as_close = lost <= CLOSE or row.agreement == 1.0
    return quicker and row.equal >= default.equal and as_close
