"""How requests are routed, as Prometheus families.

Definitions: a decision is counted once per generation request, when it is made: a fallback may still take the place of
its student and path. Confidence is the classifier's, also when it abstains; requests that were not classified have
none. Route seconds: classifying, reading the pool's state and applying the policy; tokenising is not in them. A fault
is a request on which the classifier raised.
"""

from collections import Counter as Counts
from collections.abc import Callable, Iterable
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from models.student.manifest import HeadKind
from router.decision import RouteDecision
from router.tasks import Task
from server.telemetry.series import forget_series

_DECISION = ("student", "task", "path", "reason")
_CONFIDENCE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 1.0)
_ROUTE_S = (1e-5, 2e-5, 5e-5, 1e-4, 1.5e-4, 2e-4, 3e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)


class Routed(NamedTuple):
    """What a decision chose, and for which task."""

    student: str
    task: Task
    path: str
    head: HeadKind


class RouteMetrics:
    """Owned by the event loop. `counts` are decisions since the start, of the students that are there."""

    def __init__(self, registry: CollectorRegistry, num_faults: Callable[[], int]) -> None:
        self._decisions = Counter("fenhe_route_decisions", "Routed requests.", _DECISION, registry=registry)
        self._confidence = Histogram(
            "fenhe_route_confidence",
            "The classifier's confidence, by the task it led to.",
            ("task",),
            registry=registry,
            buckets=_CONFIDENCE,
        )
        self._seconds = Histogram(
            "fenhe_route_seconds", "Time of a routing decision.", registry=registry, buckets=_ROUTE_S
        )
        registry.register(_FaultCollector(num_faults))
        self.counts: Counts[Routed] = Counts()

    def forget_student(self, name: str) -> None:
        forget_series(self._decisions, _DECISION, name)
        self.counts = Counts({one: count for one, count in self.counts.items() if one.student != name})

    def observe(self, decision: RouteDecision, seconds: float) -> None:
        self._decisions.labels(decision.student, decision.task, decision.path, decision.reason.value).inc()
        self.counts[Routed(decision.student, decision.task, decision.path, decision.head)] += 1
        self._seconds.observe(seconds)
        if decision.confidence is not None:
            self._confidence.labels(decision.task).observe(decision.confidence)


class _FaultCollector(Collector):
    def __init__(self, num_faults: Callable[[], int]) -> None:
        self._num_faults = num_faults

    def collect(self) -> Iterable[Metric]:
        family = CounterMetricFamily("fenhe_classifier_faults", "Requests on which the classifier failed.")
        family.add_metric((), self._num_faults())
        yield family

    def describe(self) -> Iterable[Metric]:
        return []
