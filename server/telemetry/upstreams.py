"""Prometheus families of remote students: their upstreams, numbered as in the settings, for addresses are no labels."""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, runtime_checkable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from engines.remote.upstream import Upstream

LABELS = ("student", "upstream")

Upstreams = Sequence[tuple[str, Sequence[Upstream], int]]
"""Per remote student its name, its upstreams, and how often a request was tried at another one."""


@runtime_checkable
class HasUpstreams(Protocol):
    """What is read of a remote engine, which is imported only where there is one."""

    upstreams: Sequence[Upstream]
    num_retries: int


class UpstreamCollector(Collector):
    def __init__(self, read: Callable[[], Upstreams]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        up = GaugeMetricFamily("fenhe_upstream_up", "1 while requests may go to it.", labels=LABELS)
        running = GaugeMetricFamily("fenhe_upstream_running", "Requests that it works on.", labels=LABELS)
        requests = CounterMetricFamily("fenhe_upstream_requests", "Requests sent to it.", labels=LABELS)
        failures = CounterMetricFamily("fenhe_upstream_failures", "Of them, failed by its fault.", labels=LABELS)
        retries = CounterMetricFamily(
            "fenhe_upstream_retries", "Requests that were tried at another upstream.", labels=("student",)
        )
        for student, upstreams, num_retries in self._read():
            retries.add_metric((student,), num_retries)
            for number, upstream in enumerate(upstreams):
                labels = (student, str(number))
                up.add_metric(labels, float(upstream.can_be_asked))
                running.add_metric(labels, upstream.num_running)
                requests.add_metric(labels, upstream.num_requests)
                failures.add_metric(labels, upstream.num_failures)
        yield from (up, running, requests, failures, retries)

    def describe(self) -> Iterable[Metric]:
        return []
