"""What a check finds, as plain values."""

from __future__ import annotations

from dataclasses import dataclass

from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.execution.hf.supported import TESTED_MODEL_TYPES
from fusionrag_integrations.serving.settings import KVSource
from fusionrag_integrations.store.kv.types import KVFormat


@dataclass(frozen=True, slots=True)
class CheckRow:
    """How close one way of reuse comes to full attention.

    equal: share of whole answers that are full attention's, token by token, with a 95% interval
    over questions. recovered: the share of plain reuse's loss that is recovered, 1 - KL / plain
    reuse's KL, over full attention's answers, with such an interval; None where plain reuse loses
    next to nothing, and no interval where few questions lose anything. agreement: share of the
    answers' tokens that are also the likeliest here. speedup: full attention's time to first token
    over this one's, median over at most ten of the questions.
    """

    kv: KVSource
    ratio: float
    equal: float
    equal_interval: tuple[float, float]
    recovered: float | None
    recovered_interval: tuple[float, float] | None
    agreement: float
    speedup: float

    @property
    def equal_in_words(self) -> str:
        """As in "96% (90 to 100%)"."""
        return _in_words(self.equal, self.equal_interval)

    @property
    def recovered_in_words(self) -> str:
        """The same; "-" where there is nothing to recover."""
        return "-" if self.recovered is None else _in_words(self.recovered, self.recovered_interval)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model's row in the table of models.

    type: transformers' name of its family; tested: whether a tiny model of it passes the gates with
    every release. weights: their dtype, or how they are quantised. kv_bytes: of a token's keys and
    values in all layers, as the model computes them.
    """

    type: str
    tested: bool
    weights: str
    layers: int
    kv_bytes: int

    @classmethod
    def of(cls, model: CausalModel) -> ModelFacts:
        """What a model is."""
        kind = str(model.hf.config.model_type)
        return cls(
            kind, kind in TESTED_MODEL_TYPES, model.weights, model.num_layers, model.kv_bytes
        )


@dataclass(frozen=True, slots=True)
class DiskUse:
    """The size on disk of the KV of a store's chunks, isolated and fused together."""

    bytes: int
    chunks: int
    tokens: int
    bytes_per_chunk: int
    bytes_per_token: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """What ingesting documents into a new store would take.

    tokens: of all chunks, in the model's tokens. bytes: of KV in files. seconds: to compute that
    KV on this machine, without reading, embedding and writing.
    """

    documents: int
    chunks: int
    tokens: int
    kv_format: KVFormat
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What `FusionEngine.check` finds.

    exact: whether recomputing everything gives the model's own logits; None where nothing was
    asked. deviation: by how much they differ, relative to their spread. rows: plain reuse (isolated
    KV as it is stored) first, then fused KV by ratio. verdict: what to set, as text. questions:
    how many were asked. prompt_tokens: the median. without_kv: of how many chunks in these prompts
    KV is missing or can't be used.
    """

    model: str
    facts: ModelFacts
    exact: bool | None
    deviation: float | None
    rows: tuple[CheckRow, ...]
    verdict: str
    disk: DiskUse | None
    estimate: Estimate | None
    questions: int
    prompt_tokens: int
    without_kv: int

    @classmethod
    def of_estimate(cls, model: CausalModel, estimate: Estimate) -> CheckReport:
        """A report without a store, where nothing can be asked."""
        return cls(
            model=model.name,
            facts=ModelFacts.of(model),
            exact=None,
            deviation=None,
            rows=(),
            verdict="There is no store yet: index documents, then check how close answers come.",
            disk=None,
            estimate=estimate,
            questions=0,
            prompt_tokens=0,
            without_kv=0,
        )


def _in_words(share: float, interval: tuple[float, float] | None) -> str:
    if interval is None:
        return f"{share:.0%}"
    low, high = (100 * bound for bound in interval)
    return f"{share:.0%} ({low:.0f} to {high:.0f}%)"
