"""Prometheus metrics: the names vLLM's dashboards know where the meaning is the same, `fenhe_` for ours.

Definitions, all on the engine's clock: queue = admitted - queued; prefill = first token - admitted; decode =
finished - first token; inference = finished - admitted; e2e = finished - queued; TTFT = first token - queued;
TPOT = decode / (tokens - 1); ITL = gap between two events with tokens of a sequence, seen by the event loop.
"""

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from engines.config import EngineConfig
from engines.contract import Engine, EngineStatus
from engines.sequence import Finish, FinishReason, GenerationRequest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
ENGINE = "0"
LABELS = ("model_name", "engine")

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
    0.01,
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
    """One server's registry. Owned by the event loop; reading it (`render`) is safe anywhere."""

    def __init__(self, engine: Engine, config: EngineConfig) -> None:
        student = engine.status().student
        labels = (student, ENGINE)
        self._registry = CollectorRegistry()
        self._histograms: dict[str, Histogram] = {}
        for name, (text, buckets) in _DURATIONS.items():
            family = Histogram(name, text, LABELS, registry=self._registry, buckets=buckets)
            self._histograms[name.removeprefix("vllm:")] = family.labels(*labels)
        self._gap = self._histograms["inter_token_latency_seconds"]
        success = Counter(
            "vllm:request_success",
            "Sequences by how they ended.",
            (*LABELS, "finished_reason"),
            registry=self._registry,
        )
        self._success = {reason: success.labels(*labels, reason.value) for reason in FinishReason}
        prefix = (
            ("vllm:prefix_cache_queries", "Prompt tokens looked up."),
            ("vllm:prefix_cache_hits", "Of them, found."),
        )
        self._queries, self._hits = (
            Counter(name, text, LABELS, registry=self._registry).labels(*labels) for name, text in prefix
        )
        self._paths = Counter(
            "fenhe_path_sequences",
            "Sequences by the path that ran.",
            ("student", "path"),
            registry=self._registry,
        )
        self._http = Counter(
            "fenhe_http_requests", "HTTP requests.", ("method", "route", "status"), registry=self._registry
        )
        _describe_cache(self._registry, labels, config)
        self._student = student
        self._registry.register(EngineCollector(engine))

    def observe_gap(self, seconds: float) -> None:
        self._gap.observe(seconds)

    def observe_request(self, n: int, max_tokens: int) -> None:
        self._histograms["request_params_n"].observe(n)
        self._histograms["request_params_max_tokens"].observe(max_tokens)

    def observe_http(self, method: str, route: str, status: int) -> None:
        self._http.labels(method, route, str(status)).inc()

    def observe_finish(self, request: GenerationRequest, finish: Finish) -> None:
        self._success[finish.reason].inc()
        self._paths.labels(self._student, finish.path).inc()
        self._queries.inc(finish.usage.num_prompt_tokens)
        self._hits.inc(finish.usage.num_cached_tokens)
        for name, value in _figures(finish):
            self._histograms[name].observe(value)

    def render(self) -> bytes:
        return generate_latest(self._registry)


def _describe_cache(registry: CollectorRegistry, labels: tuple[str, str], config: EngineConfig) -> None:
    names = (*LABELS, "kv_bytes", "prefix_cache_bytes")
    info = Gauge("vllm:cache_config_info", "How memory for KV is bounded.", names, registry=registry)
    info.labels(*labels, str(config.kv_bytes), str(config.prefix_cache_bytes)).set(1)


def _figures(finish: Finish) -> Iterator[tuple[str, float]]:
    """What is known of a sequence at its end; durations it never got to are left out."""
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


class EngineCollector(Collector):
    """Reads the engine's own counts when somebody scrapes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterable[Metric]:
        status = self._engine.status()
        yield from _engine_gauges(status)
        yield from _engine_counters(status)
        yield from _stage_counters(status)
        yield from _loading(status)

    def describe(self) -> Iterable[Metric]:
        return []


def _engine_gauges(status: EngineStatus) -> Iterator[Metric]:
    share = status.kv_used_bytes / status.kv_capacity_bytes if status.kv_capacity_bytes else 0.0
    for name, text, value in (
        ("vllm:num_requests_running", "Sequences being generated.", float(status.num_running)),
        ("vllm:num_requests_waiting", "Sequences waiting to be admitted.", float(status.num_waiting)),
        ("vllm:kv_cache_usage_perc", "Share of the KV memory in use; 1 is all.", share),
        ("fenhe_kv_used_bytes", "KV memory in use.", float(status.kv_used_bytes)),
        ("fenhe_prefix_cache_bytes", "Memory of the prefix cache.", float(status.prefix_cache_bytes)),
        ("fenhe_engine_healthy", "1 while the engine answers.", float(status.is_healthy)),
    ):
        family = GaugeMetricFamily(name, text, labels=LABELS)
        family.add_metric((status.student, ENGINE), value)
        yield family


def _engine_counters(status: EngineStatus) -> Iterator[Metric]:
    for name, text, value in (
        ("vllm:prompt_tokens", "Prompt tokens processed.", status.num_prompt_tokens),
        ("vllm:generation_tokens", "Tokens generated.", status.num_generation_tokens),
        ("vllm:num_preemptions", "Sequences put back to wait for memory.", status.num_preemptions),
        ("fenhe_steps", "Engine steps.", status.num_steps),
        ("fenhe_failed_steps", "Engine steps that failed.", status.num_failed_steps),
    ):
        family = CounterMetricFamily(name, text, labels=LABELS)
        family.add_metric((status.student, ENGINE), value)
        yield family


def _stage_counters(status: EngineStatus) -> Iterator[Metric]:
    counts: tuple[tuple[str, str, Mapping[str, int]], ...] = (
        ("fenhe_stage_runs", "Forward passes of a module, an exit or the head.", status.stage_runs),
        ("fenhe_stage_rows", "Rows those passes computed.", status.stage_rows),
        ("fenhe_prefix_query_tokens", "Prompt tokens looked up per module.", status.prefix_query_tokens),
        ("fenhe_prefix_hit_tokens", "Of them, found.", status.prefix_hit_tokens),
    )
    for name, text, values in counts:
        family = CounterMetricFamily(name, text, labels=("student", "stage"))
        for stage, value in values.items():
            family.add_metric((status.student, stage), value)
        yield family


def _loading(status: EngineStatus) -> Iterator[Metric]:
    family = GaugeMetricFamily(
        "fenhe_path_loaded", "Share of a path's stages that are loaded.", labels=("student", "path")
    )
    for path in status.paths:
        family.add_metric((status.student, path.path), path.num_loaded_stages / path.num_stages)
    yield family
