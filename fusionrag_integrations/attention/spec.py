"""What a layer's attention is, beside its tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, eq=False)
class AttentionSpec:
    """How one layer attends: to what it sees by softmax(capped(scaling Q K^T)).

    scaling: usually 1/sqrt(D). window: how many keys a row sees, its own the last of them; None is
    all up to its own. softcap: scores are bent so that none is farther from 0 (Gemma 2,
    arXiv 2408.00118). sinks: of each query head a score of its own, [Hq], which takes its share of
    every row's weights and has no value (gpt-oss, arXiv 2508.10925).
    """

    scaling: float
    window: int | None = None
    softcap: float | None = None
    sinks: torch.Tensor | None = None

    @property
    def is_plain(self) -> bool:
        """Whether weights are the softmax of the scores, as PyTorch's attention has it."""
        return self.softcap is None and self.sinks is None

    def on(self, device: torch.device) -> AttentionSpec:
        """The same with its tensors on a device."""
        return self if self.sinks is None else replace(self, sinks=self.sinks.to(device))

    def capped(self, scores: torch.Tensor) -> torch.Tensor:
        """Scaled scores as the softmax takes them; changes them in place."""
        if self.softcap is None:
            return scores
        return scores.div_(self.softcap).tanh_().mul_(self.softcap)

    def softmax(self, scores: torch.Tensor) -> torch.Tensor:
        """The weights [Hq, R, N] of capped scores, -inf where a key isn't seen."""
        if self.sinks is None:
            return scores.softmax(-1)
        total = scores.logsumexp(-1, keepdim=True)
        return (scores - total.logaddexp(self.sinks.to(scores)[:, None, None])).exp_()
