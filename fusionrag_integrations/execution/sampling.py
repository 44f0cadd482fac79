"""How the tokens of an answer are chosen."""

from __future__ import annotations

from dataclasses import dataclass

LEAST, MOST = 1e-6, 1e6  # a temperature and a penalty; both together keep logits within float32


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """max_tokens: of the answer. temperature: 0 is greedy; top_p and top_k (0 is no limit) hold
    above that. repetition_penalty: None takes what the model's generation config says.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float | None = None
