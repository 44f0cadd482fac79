"""The metrics of several servers as one text for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector


def merged(texts: Mapping[str, str]) -> bytes:
    """Each server's metrics with a label `replica`, by name of the replica."""
    registry = CollectorRegistry()
    registry.register(_Parsed(texts))
    return generate_latest(registry)


class _Parsed(Collector):
    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts

    def describe(self) -> Iterable[Metric]:
        """None: names are those of the texts."""
        return []

    def collect(self) -> Iterator[Metric]:
        metrics: dict[str, Metric] = {}
        for replica, text in self._texts.items():
            for metric in text_string_to_metric_families(text):
                into = metrics.setdefault(
                    metric.name, Metric(metric.name, metric.documentation, metric.type)
                )
                into.samples += [
                    sample._replace(labels={**sample.labels, "replica": replica})
                    for sample in metric.samples
                ]
        yield from metrics.values()
