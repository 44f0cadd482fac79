"""What a request cost: how its tokens were obtained, and where the time went."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class TTFTBreakdown:
    """Where the time to first token went, in milliseconds.

    queue: waiting to be let in. encode: template and tokens. match: finding chunks. load: reading
    the first layers of KV; what later layers wait for it counts to their own step. capture:
    computing KV of new chunks. place: rotating and copying KV; on CUDA only until that is queued.
    probe and select: choosing tokens. prefill: recomputing them and the fresh tokens (or, under
    full attention, everything). first_token: from logits to the token. Passes that a request shares
    count to it whole.
    """

    queue: float = 0.0
    encode: float = 0.0
    match: float = 0.0
    load: float = 0.0
    capture: float = 0.0
    place: float = 0.0
    probe: float = 0.0
    select: float = 0.0
    prefill: float = 0.0
    first_token: float = 0.0

    @property
    def total(self) -> float:
        return float(sum(getattr(self, f.name) for f in fields(self)))


@dataclass(frozen=True, slots=True)
class Usage:
    """How a prompt's tokens were obtained.

    prompt_tokens = reused + recomputed + captured + fresh. captured_tokens are of new chunks whose
    KV was computed and stored, and not recomputed. missed <= fresh counts the fresh tokens of known
    chunks whose KV was missing, corrupt or foreign. prefix_tokens <= reused counts those at the
    prompt's start that another request has computed exactly, history_tokens <= reused those of the
    conversation so far, whose KV was computed over chunks' stored KV. token_layers: the work before
    the first token, probes included, as the number of times that a layer ran over a token; full
    attention's is prompt_tokens x layers.
    """

    prompt_tokens: int
    reused_tokens: int
    recomputed_tokens: int
    fresh_tokens: int
    missed_tokens: int
    completion_tokens: int
    token_layers: int
    prefix_tokens: int = 0
    captured_tokens: int = 0
    history_tokens: int = 0

    @classmethod
    def of_full_attention(cls, tokens: int, layers: int) -> Usage:
        """Of a prompt of so many tokens that is computed in full."""
        return cls(
            prompt_tokens=tokens,
            reused_tokens=0,
            recomputed_tokens=0,
            fresh_tokens=tokens,
            missed_tokens=0,
            completion_tokens=0,
            token_layers=tokens * layers,
        )

    @property
    def recompute_ratio(self) -> float:
        """Share of the chunk tokens in the prompt that were computed; 1.0 where there are none.

        Those of the conversation so far aren't counted again.
        """
        computed = self.recomputed_tokens + self.captured_tokens
        return computed / self.found_tokens if self.found_tokens else 1.0

    @property
    def found_tokens(self) -> int:
        """Chunks' tokens that are in the prompt, but for what it was known to begin with."""
        known = self.prefix_tokens + self.history_tokens
        return self.reused_tokens - known + self.recomputed_tokens + self.captured_tokens
