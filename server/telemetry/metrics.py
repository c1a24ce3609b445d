"""Prometheus metrics: vLLM's names where the meaning is the same, so that its dashboards work; `fenhe_` for ours.

Definitions, where queued is the arrival at the student's admission: queue = admitted - queued; prefill = first token -
admitted; decode = finished - first token; inference = finished - admitted; e2e = finished - queued; TTFT = first
token - queued; TPOT = decode / (tokens - 1); ITL = gap between two events with tokens of a sequence, seen by the loop.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.registry import Collector

from engines.config import EngineConfig
from engines.sequence import Finish, FinishReason, GenerationRequest
from router.cache.result_cache import ResultCache
from server.telemetry.cache import CacheCollector
from server.telemetry.compute import ComputeMetrics
from server.telemetry.engine import ENGINE, LABELS, EngineCollector, Statuses
from server.telemetry.ignored import IgnoredFields
from server.telemetry.route import RouteMetrics
from server.telemetry.series import forget_series
from server.telemetry.tenants import TenantMetrics

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Source: vLLM v1/metrics/buckets.py, so that percentiles of both compare; ours begin lower.
_TTFT_S = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
    160,
    640,
    2560,
)
_GAP_S = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.4,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
)
_REQUEST_S = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.3,
    0.5,
    0.8,
    1,
    1.5,
    2,
    2.5,
    5,
    10,
    15,
    20,
    30,
    40,
    50,
    60,
    120,
    240,
    480,
    960,
    1920,
    7680,
)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
_CHOICES = (1, 2, 5, 10, 20)

_CACHE = (*LABELS, "kv_bytes", "prefix_cache_bytes")
_REASONS = (*LABELS, "finished_reason")
_PATHS = ("student", "path")

_DURATIONS = {
    "vllm:time_to_first_token_seconds": ("From queued to the first token.", _TTFT_S),
    "vllm:inter_token_latency_seconds": ("Between two events with tokens of one sequence.", _GAP_S),
    "vllm:request_time_per_output_token_seconds": ("Decode time over the tokens after the first.", _GAP_S),
    "vllm:e2e_request_latency_seconds": ("From queued to finished.", _REQUEST_S),
    "vllm:request_queue_time_seconds": ("From queued to admitted.", _REQUEST_S),
    "vllm:request_prefill_time_seconds": ("From admitted to the first token.", _REQUEST_S),
    "vllm:request_decode_time_seconds": ("From the first token to finished.", _REQUEST_S),
    "vllm:request_inference_time_seconds": ("From admitted to finished.", _REQUEST_S),
    "vllm:request_prompt_tokens": ("Prompt tokens per sequence.", _TOKENS),
    "vllm:request_generation_tokens": ("Generated tokens per sequence.", _TOKENS),
    "vllm:request_params_n": ("The n of requests.", _CHOICES),
    "vllm:request_params_max_tokens": ("The most tokens a request may generate.", _TOKENS),
}


class Metrics:
    """One server's registry. Owned by the event loop; reading it (`render`) is safe anywhere.

    `statuses` and `num_classifier_faults` are called on every scrape.
    """

    def __init__(
        self,
        config: EngineConfig,
        statuses: Callable[[], Statuses] = lambda: (),
        num_classifier_faults: Callable[[], int] = lambda: 0,
        cache: ResultCache | None = None,
    ) -> None:
        self._config = config
        registry = self._registry = CollectorRegistry()
        self.families = Families.make(registry)
        self.routes = RouteMetrics(registry, num_classifier_faults)
        self.compute = ComputeMetrics(registry)
        self.ignored = IgnoredFields(registry)
        self.tenants = TenantMetrics(registry)
        ProcessCollector(registry=registry)  # memory, processor time and open files; the start, by which restarts show
        self._http = Counter("fenhe_http_requests", "HTTP requests.", ("method", "route", "status"), registry=registry)
        text = "How memory for KV is bounded."
        self._cache_info = Gauge("vllm:cache_config_info", text, _CACHE, registry=registry)
        registry.register(EngineCollector(statuses))
        if cache is not None:
            registry.register(CacheCollector(cache))

    def register(self, collector: Collector) -> None:
        """Add a collector."""
        self._registry.register(collector)

    def for_student(self, name: str) -> "StudentMetrics":
        """Where a student's sequences are counted."""
        config = self._config
        self._cache_info.labels(name, ENGINE, str(config.kv_bytes), str(config.prefix_cache_bytes)).set(1)
        return StudentMetrics(name, self.families)

    def forget_student(self, name: str) -> None:
        """Drop every series of a student that is gone; a later one of that name starts from zero."""
        forget_series(self._cache_info, _CACHE, name)
        self.families.forget_student(name)
        self.routes.forget_student(name)
        self.compute.forget_student(name)

    def observe_http(self, method: str, route: str, status: int) -> None:
        self._http.labels(method, route, str(status)).inc()

    def render(self) -> bytes:
        return generate_latest(self._registry)


@dataclass(slots=True, kw_only=True, frozen=True)
class Families:
    """What is counted per sequence, by student."""

    histograms: dict[str, Histogram]
    success: Counter
    queries: Counter
    hits: Counter
    paths: Counter

    @classmethod
    def make(cls, registry: CollectorRegistry) -> "Families":
        return cls(
            histograms={
                name.removeprefix("vllm:"): Histogram(name, text, LABELS, registry=registry, buckets=buckets)
                for name, (text, buckets) in _DURATIONS.items()
            },
            success=Counter("vllm:request_success", "Sequences by how they ended.", _REASONS, registry=registry),
            queries=Counter("vllm:prefix_cache_queries", "Prompt tokens looked up.", LABELS, registry=registry),
            hits=Counter("vllm:prefix_cache_hits", "Of them, found.", LABELS, registry=registry),
            paths=Counter("fenhe_path_sequences", "Sequences by the path that ran.", _PATHS, registry=registry),
        )

    def forget_student(self, name: str) -> None:
        for family in (*self.histograms.values(), self.queries, self.hits):
            forget_series(family, LABELS, name)
        forget_series(self.success, _REASONS, name)
        forget_series(self.paths, _PATHS, name)


class StudentMetrics:
    """One student's share of the families. Owned by the event loop."""

    def __init__(self, name: str, families: Families) -> None:
        labels = (name, ENGINE)
        self._student = name
        self._paths = families.paths
        self._histograms = {key: family.labels(*labels) for key, family in families.histograms.items()}
        self._gap = self._histograms["inter_token_latency_seconds"]
        self._success = {reason: families.success.labels(*labels, reason.value) for reason in FinishReason}
        self._queries, self._hits = families.queries.labels(*labels), families.hits.labels(*labels)

    def observe_gap(self, seconds: float) -> None:
        self._gap.observe(seconds)

    def observe_request(self, n: int, max_tokens: int) -> None:
        self._histograms["request_params_n"].observe(n)
        self._histograms["request_params_max_tokens"].observe(max_tokens)

    def observe_finish(self, request: GenerationRequest, finish: Finish) -> None:
        self._success[finish.reason].inc()
        self._paths.labels(self._student, finish.path).inc()
        self._queries.inc(finish.usage.num_prompt_tokens)
        self._hits.inc(finish.usage.num_cached_tokens)
        for name, value in _figures(finish):
            self._histograms[name].observe(value)


def _figures(finish: Finish) -> Iterator[tuple[str, float]]:
    """The durations and counts of a finished sequence; stages it never reached are left out."""
    times, tokens = finish.timings, finish.usage.num_completion_tokens
    yield "e2e_request_latency_seconds", times.finished_s - times.queued_s
    yield "request_prompt_tokens", finish.usage.num_prompt_tokens
    yield "request_generation_tokens", tokens
    if times.admitted_s is None:
        return
    yield "request_queue_time_seconds", times.admitted_s - times.queued_s
    yield "request_inference_time_seconds", times.finished_s - times.admitted_s
    if times.first_token_s is None:
        return
    decode_s = times.finished_s - times.first_token_s
    yield "time_to_first_token_seconds", times.first_token_s - times.queued_s
    yield "request_prefill_time_seconds", times.first_token_s - times.admitted_s
    yield "request_decode_time_seconds", decode_s
    if tokens > 1:
        yield "request_time_per_output_token_seconds", decode_s / (tokens - 1)
