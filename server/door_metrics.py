"""What was let in, queued and refused at every student's door, and for want of a key, as Prometheus families.

Definitions: tokens are what requests promise, prompt and longest answer; the drain rate is tokens computed per second
while something was queued, newer seconds counting more.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from router.admission import Admission
from router.decision import Priority
from server.keys import Keyring

Doors = Sequence[tuple[str, Admission, float | None]]
"""Each student's name, its door, and its drain rate where one was measured."""


class DoorCollector(Collector):
    def __init__(self, read: Callable[[], Doors], keyring: Keyring) -> None:
        self._read = read
        self._keyring = keyring

    def collect(self) -> Iterable[Metric]:
        doors = self._read()
        yield from _tokens(doors)
        yield _queued(doors)
        yield _refused(doors)
        yield self._refused_keys()

    def describe(self) -> Iterable[Metric]:
        return []

    def _refused_keys(self) -> Metric:
        text = "Requests refused for want of a key, of a right or of what a key may use."
        family = CounterMetricFamily("fenhe_key_refusals", text, labels=("code",))
        for code, count in sorted(self._keyring.refusals.items()):
            family.add_metric((code,), count)
        return family


def _tokens(doors: Doors) -> Iterator[Metric]:
    running = GaugeMetricFamily("fenhe_admitted_tokens", "Tokens promised to what runs.", labels=("student",))
    queued = GaugeMetricFamily("fenhe_queued_tokens", "Tokens promised to what is queued.", labels=("student",))
    rate = GaugeMetricFamily("fenhe_drain_tokens_per_second", "Tokens a second under load.", labels=("student",))
    for name, admission, tokens_per_s in doors:
        running.add_metric((name,), admission.running.num_tokens)
        queued.add_metric((name,), admission.queued.num_tokens)
        if tokens_per_s is not None:
            rate.add_metric((name,), tokens_per_s)
    yield from (running, queued, rate)


def _queued(doors: Doors) -> Metric:
    family = GaugeMetricFamily("fenhe_queued_requests", "Requests queued.", labels=("student", "priority"))
    for name, admission, _ in doors:
        for priority in Priority:
            family.add_metric((name, priority.value), admission.num_waiting_in(priority))
    return family


def _refused(doors: Doors) -> Metric:
    text = "Requests not let in, or sent out of the queue."
    family = CounterMetricFamily("fenhe_admission_refusals", text, labels=("student", "code"))
    for name, admission, _ in doors:
        for code, count in sorted(admission.refusals.items()):
            family.add_metric((name, code), count)
    return family
