"""An answer and how it came about."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from fusionrag_integrations.execution.decoding import FinishReason
from fusionrag_integrations.serving.answer.page import Explanation, explained
from fusionrag_integrations.serving.answer.reuse import Fallback
from fusionrag_integrations.serving.answer.trace import PromptTrace
from fusionrag_integrations.serving.usage import TTFTBreakdown, Usage


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer and how it came about. Counts of chunks say which KV was used for them.

    full_reason: why the whole prompt was computed; empty where KV was reused. fallbacks: the chunks
    whose KV was missing, isolated where fused KV was asked for, or without the correction that it
    should have, and why. trace: the prompt, for `explain`.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    ttft: TTFTBreakdown
    fused_chunks: int = 0
    isolated_chunks: int = 0
    missed_chunks: int = 0
    captured_chunks: int = 0
    short: bool = False
    full_reason: str = ""
    fallbacks: tuple[Fallback, ...] = ()
    trace: PromptTrace | None = field(default=None, repr=False, compare=False)

    def report(self) -> dict[str, Any]:
        """How the answer came about, without its text, as plain values for logs and metadata."""
        return {
            "finish_reason": self.finish_reason,
            "short": self.short,
            "full_reason": self.full_reason,
            "usage": asdict(self.usage) | {"recompute_ratio": self.usage.recompute_ratio},
            "ttft_ms": asdict(self.ttft) | {"total": self.ttft.total},
            "chunks": {
                "fused": self.fused_chunks,
                "isolated": self.isolated_chunks,
                "missed": self.missed_chunks,
                "captured": self.captured_chunks,
            },
            "fallbacks": [asdict(fallback) for fallback in self.fallbacks],
        }

    def explain(self) -> Explanation:
        """How the answer came about, as a page: shown in a notebook, or saved for a browser.

        Raises `InvalidInputError` for an answer that was made without a trace.
        """
        return explained(
            self.text, self.usage, self.ttft, self.full_reason, self.fallbacks, self.trace
        )
