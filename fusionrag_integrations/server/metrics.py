"""Prometheus metrics of one server, in a registry of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fusionrag_integrations.server.records import Record

if TYPE_CHECKING:
    from fusionrag_integrations.serving.answer import Answer
    from fusionrag_integrations.store.kv.metrics import StoreMetrics

Tiers = Callable[[], "StoreMetrics"]
State = Callable[[], dict[str, int]]
# In seconds.
_FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_WHOLE = (0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counts and times of requests; the tiers of KV are read when they are asked for."""

    def __init__(self, tiers: Tiers, state: State) -> None:
        """state: how many requests there are now of each kind, such as those that wait."""
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "fusionrag_requests", "Requests.", ["endpoint", "status"], registry=self._registry
        )
        self._tokens = Counter(
            "fusionrag_tokens",
            "Tokens of prompts, by how they were obtained, and of completions.",
            ["kind"],
            registry=self._registry,
        )
        self._ttft = self._times("ttft", "From a request's arrival to its first text.", _FIRST)
        self._gaps = self._times(
            "time_between_tokens", "Between pieces of an answer's text.", _BETWEEN
        )
        self._durations = self._times("request", "From a request's arrival to its end.", _WHOLE)
        self._registry.register(_Now(tiers, state))

    def first(self, seconds: float) -> None:
        """The first text of an answer."""
        self._ttft.observe(seconds)

    def next(self, seconds: float) -> None:
        """Further text of an answer."""
        self._gaps.observe(seconds)

    def answered(self, answer: Answer) -> None:
        """An answer that was read to its end."""
        usage = answer.usage
        counts = {
            "reused": usage.reused_tokens,
            "recomputed": usage.recomputed_tokens,
            "captured": usage.captured_tokens,
            "fresh": usage.fresh_tokens,
            "completion": usage.completion_tokens,
        }
        for kind, count in counts.items():
            self._tokens.labels(kind).inc(count)

    def ended(self, record: Record) -> None:
        """A request, however it ended."""
        self._requests.labels(record.endpoint, record.status).inc()
        self._durations.observe(record.duration_ms / 1000)

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self._registry)

    def _times(self, name: str, told: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(
            f"fusionrag_{name}_seconds", told, buckets=buckets, registry=self._registry
        )


class _Now(Collector):
    """What is true at the moment: requests under way, and the tiers of KV."""

    def __init__(self, tiers: Tiers, state: State) -> None:
        self._tiers = tiers
        self._state = state

    def describe(self) -> list[Metric]:
        """None: registering them must not ask the engine."""
        return []

    def collect(self) -> Iterator[Metric]:
        now = GaugeMetricFamily("fusionrag_requests_now", "Requests now.", labels=["state"])
        for name, count in self._state().items():
            now.add_metric([name], count)
        yield now
        found = self._tiers()
        tiers = {name: asdict(getattr(found, name)) for name in ("device", "host", "disk")}
        for field, told in (("bytes", "KV held, in bytes."), ("records", "KV records held.")):
            gauge = GaugeMetricFamily(f"fusionrag_kv_{field}", told, labels=["tier"])
            for tier, counts in tiers.items():
                gauge.add_metric([tier], counts[field])
            yield gauge
        for field, told in (
            ("hits", "Requests for KV that a tier served."),
            ("evictions", "KV records that gave way to others."),
        ):
            counter = CounterMetricFamily(f"fusionrag_kv_{field}", told, labels=["tier"])
            for tier, counts in tiers.items():
                counter.add_metric([tier], counts[field])
            yield counter
        for field in ("misses", "corrupt", "stale"):
            told = f"KV that was asked for and couldn't be used: {field}."
            yield CounterMetricFamily(f"fusionrag_kv_{field}", told, value=getattr(found, field))
