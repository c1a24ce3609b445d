"""What the result cache did, as Prometheus families.

Definitions: a request is counted once, with the first piece of its answer, by where that came from: a cached answer
(hit), a generation that another request started (join), its own (miss), or its own without a look-up (bypass). Refused
requests are not counted, nor is the second try of one whose shared generation failed. Entries and bytes are those in
this process; with Redis there are none. While a breaker is open, the store is not asked.
"""

from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from router.cache.result_cache import Outcome, ResultCache
from router.cache.store import StoreStatus


class CacheCollector(Collector):
    def __init__(self, cache: ResultCache) -> None:
        self._cache = cache

    def collect(self) -> Iterable[Metric]:
        yield from _of_requests(self._cache)
        yield from _of_store(self._cache.store.status())

    def describe(self) -> Iterable[Metric]:
        return []


def _of_requests(cache: ResultCache) -> Iterator[Metric]:
    requests = CounterMetricFamily("fenhe_cache_requests", "Generation requests.", labels=("outcome",))
    for outcome in Outcome:
        requests.add_metric((outcome.value,), cache.outcomes[outcome])
    yield requests
    yield _counter("fenhe_cache_stored", "Answers put into the store.", cache.num_stored)
    text = "Answers not kept: larger than cache.max_entry_bytes."
    yield _counter("fenhe_cache_too_large", text, cache.num_too_large)
    yield _counter("fenhe_cache_rubbish", "Values of the store that were no answer.", cache.num_unreadable)
    yield _counter("fenhe_cache_similar_hits", "Hits on a question that only says nearly the same.", cache.num_similar)
    yield _gauge("fenhe_cache_generations", "Generations that may be joined.", len(cache.flights))


def _of_store(status: StoreStatus) -> Iterator[Metric]:
    if status.num_entries is not None:
        yield _gauge("fenhe_cache_entries", "Answers kept in this process.", status.num_entries)
    if status.num_bytes is not None:
        yield _gauge("fenhe_cache_bytes", "Memory of the answers kept in this process.", status.num_bytes)
    evictions = CounterMetricFamily(
        "fenhe_cache_evictions", "Answers removed from the store, and what was short.", labels=("want",)
    )
    for want, count in status.evictions.items():
        evictions.add_metric((want,), count)
    yield evictions
    errors = CounterMetricFamily(
        "fenhe_cache_store_errors", "Calls to the store that failed.", labels=("operation", "kind")
    )
    for labels, count in status.errors.items():
        errors.add_metric(labels, count)
    yield errors
    breakers = GaugeMetricFamily("fenhe_cache_breaker_open", "1 while the store is not asked.", labels=("operation",))
    for operation, is_open in status.open_breakers.items():
        breakers.add_metric((operation,), float(is_open))
    yield breakers


def _counter(name: str, text: str, value: int) -> Metric:
    family = CounterMetricFamily(name, text)
    family.add_metric((), value)
    return family


def _gauge(name: str, text: str, value: int) -> Metric:
    family = GaugeMetricFamily(name, text)
    family.add_metric((), value)
    return family
