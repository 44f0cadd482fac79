"""What a layer's attention is, beside its tensors."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """How one layer attends.

    scaling: what QK is multiplied by, usually 1/sqrt(D). window: how many keys a row sees, its own
    the last of them; None is all up to its own. Attention sinks and soft caps of the scores belong
    here as fields, once a kernel computes them.
    """

    scaling: float
    window: int | None = None
