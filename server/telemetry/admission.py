"""Prometheus families of admission per student, of requests refused for their key, of refused connections, and of the
last reload.

Definitions: tokens are the most a request may use, prompt and longest answer; the drain rate is tokens computed per
second while something was queued, with recent seconds weighing more.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from router.admission.admission import Admission
from router.decision import Priority

Admissions = Sequence[tuple[str, Admission, float | None]]
"""Each student's name, its admission, and its drain rate where one was measured."""


class AdmissionCollector(Collector):
    def __init__(
        self,
        read: Callable[[], Admissions],
        refused_keys: Mapping[str, int],
        refused_connections: Mapping[str, int],
        *,
        is_reload_good: Callable[[], bool],
    ) -> None:
        self._read = read
        self._refused_keys = refused_keys
        self._refused_connections = refused_connections
        self._is_reload_good = is_reload_good

    def collect(self) -> Iterable[Metric]:
        admissions = self._read()
        yield from _tokens(admissions)
        yield _queued(admissions)
        yield _refused(admissions)
        text = "Requests refused: no key, no permission, or a limit of the key."
        yield _by_code("fenhe_key_refusals", text, self._refused_keys)
        text = "Connections refused or cut before or between requests, and those of slow readers."
        yield _by_code("fenhe_connection_refusals", text, self._refused_connections)
        text = "0 when settings read again had a mistake, and the old ones stayed."
        yield GaugeMetricFamily("fenhe_last_reload_successful", text, value=float(self._is_reload_good()))

    def describe(self) -> Iterable[Metric]:
        return []


def _by_code(name: str, text: str, counts: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=("code",))
    for code, count in sorted(counts.items()):
        family.add_metric((code,), count)
    return family


def _tokens(admissions: Admissions) -> Iterator[Metric]:
    running = GaugeMetricFamily("fenhe_admitted_tokens", "Tokens promised to what runs.", labels=("student",))
    queued = GaugeMetricFamily("fenhe_queued_tokens", "Tokens promised to what is queued.", labels=("student",))
    rate = GaugeMetricFamily("fenhe_drain_tokens_per_second", "Tokens a second under load.", labels=("student",))
    for name, admission, tokens_per_s in admissions:
        running.add_metric((name,), admission.running.num_tokens)
        queued.add_metric((name,), admission.queued.num_tokens)
        if tokens_per_s is not None:
            rate.add_metric((name,), tokens_per_s)
    yield from (running, queued, rate)


def _queued(admissions: Admissions) -> Metric:
    family = GaugeMetricFamily("fenhe_queued_requests", "Requests queued.", labels=("student", "priority"))
    for name, admission, _ in admissions:
        for priority in Priority:
            family.add_metric((name, priority.value), admission.num_waiting_in(priority))
    return family


def _refused(admissions: Admissions) -> Metric:
    text = "Requests not admitted, or dropped from the queue."
    family = CounterMetricFamily("fenhe_admission_refusals", text, labels=("student", "code"))
    for name, admission, _ in admissions:
        for code, count in sorted(admission.refusals.items()):
            family.add_metric((name, code), count)
    return family
