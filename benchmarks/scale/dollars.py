"""What storage, ingest and serving cost, and from how many uses on keeping KV pays."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from benchmarks.scale.ingest import IngestWork
from benchmarks.scale.kv_bytes import CHUNK_TOKENS
from benchmarks.scale.parameters import Service
from benchmarks.scale.prompts import Prompt

HOURS_A_MONTH = 730.0
KINDS = 2  # isolated and fused


@dataclass(frozen=True, slots=True)
class Prices:
    """In dollars. The defaults are examples of list prices, to be replaced by your own.

    gpu_hour: of a replica's machine. object_gb_month: of object storage, by 10^9 bytes; put and
    get: of a request there. months: how long KV is kept, until documents or the model change.
    utilisation: the share of their time that replicas are paid for and at work.
    """

    gpu_hour: float = 3.0
    object_gb_month: float = 0.023
    put: float = 5e-6
    get: float = 4e-7
    months: float = 6.0
    utilisation: float = 0.5


@dataclass(frozen=True, slots=True)
class CorpusCost:
    """Of a corpus whose KV is kept, of both kinds. ingest: once."""

    chunks: int
    kv_bytes: float
    storage_month: float
    ingest_gpu_hours: float
    ingest: float


@dataclass(frozen=True, slots=True)
class BreakEven:
    """Prompts of one length, answered with kept KV and by full attention.

    saved_s: of the device, a prompt. uses_a_month: of each chunk, from which on keeping its KV
    costs less than what it saves. bytes_s: from which speed of a replica's link on a chunk's KV is
    fetched in less time than it saves. Both None where nothing is saved.
    """

    prompt_tokens: int
    full_attention_s: float
    reuse_s: float
    saved_s: float
    uses_a_month: float | None
    bytes_s: float | None


def corpus_cost(chunks: int, work: IngestWork, prices: Prices) -> CorpusCost:
    """What it costs to keep the KV of so many chunks."""
    nbytes = float(chunks * KINDS * work.record_bytes)
    hours = chunks * work.worker_s / 3600
    return CorpusCost(
        chunks=chunks,
        kv_bytes=nbytes,
        storage_month=nbytes / 1e9 * prices.object_gb_month,
        ingest_gpu_hours=hours,
        ingest=hours * prices.gpu_hour + chunks * KINDS * prices.put,
    )


def break_even(
    prompt_tokens: int,
    own_tokens: int,
    work: IngestWork,
    services: tuple[Service, Service],
    prices: Prices,
) -> BreakEven:
    """Over chunks of `CHUNK_TOKENS` tokens. services: with kept KV, and full attention's."""
    chunk_tokens = prompt_tokens - own_tokens
    reuse_s, full_s = (service.prefill_s(chunk_tokens, own_tokens) for service in services)
    saved = (full_s - reuse_s) * CHUNK_TOKENS / chunk_tokens  # for each chunk in the prompt
    second = prices.gpu_hour / 3600 / prices.utilisation
    worth = saved * second - prices.get
    once = work.worker_s * prices.gpu_hour / 3600 + KINDS * prices.put
    month = KINDS * work.record_bytes / 1e9 * prices.object_gb_month + once / prices.months
    return BreakEven(
        prompt_tokens=prompt_tokens,
        full_attention_s=full_s,
        reuse_s=reuse_s,
        saved_s=full_s - reuse_s,
        uses_a_month=month / worth if worth > 0 else None,
        bytes_s=work.record_bytes / saved if saved > 0 else None,
    )


def serving_month(
    requests: float, service: Service, prices: Prices, prompt: Prompt
) -> tuple[int, float]:
    """Whole replicas for so many such prompts a month, and what they cost in it."""
    device_s = service.prefill_s(sum(prompt.chunks.values()), prompt.own_tokens)
    device_s += prompt.output_tokens * service.decode_device_s
    replicas = ceil(requests * device_s / (HOURS_A_MONTH * 3600 * prices.utilisation))
    return replicas, replicas * HOURS_A_MONTH * prices.gpu_hour
