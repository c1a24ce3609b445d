"""OpenTelemetry: a span per generation and the GenAI server metrics, sent by OTLP over HTTP. Off by default.

Spans are made from its record when a request has ended, so that they cost nothing per token. They carry numbers and
names, never a prompt, an answer or a key.
Source: OpenTelemetry semantic conventions for generative AI (2026, in development); W3C Trace Context.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from models.errors import ConfigError
from server.settings.config import TracingConfig
from server.telemetry.request_record import Record

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricReader
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Tracer

logger = logging.getLogger(__name__)

TRACE_HEADERS = ("traceparent", "tracestate")

Attributes = dict[str, str | int | float | tuple[str, ...]]

OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
}
"""`gen_ai.operation.name` of the routes that generate; others have no spans."""

FLUSH_MS = 3000
NANO = 1_000_000_000

_DURATION_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_TTFT_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_TPOT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
BUCKETS = {
    "gen_ai.server.request.duration": _DURATION_S,
    "gen_ai.server.time_to_first_token": _TTFT_S,
    "gen_ai.server.time_per_output_token": _TPOT_S,
}
"""The boundaries of the conventions; those for tokens start lower, because a token takes a millisecond or two here."""


class Tracing:
    """Has its own providers: nothing global is set. `observe` never raises."""

    def __init__(self, config: TracingConfig, version: str, processor: "SpanProcessor", reader: "MetricReader") -> None:
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

        resource = Resource.create({"service.name": config.service_name, "service.version": version})
        self._traces = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(config.sample_ratio)), resource=resource, shutdown_on_exit=False
        )
        self._traces.add_span_processor(processor)
        self._meters = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
        self._tracer: Tracer = self._traces.get_tracer("fenhe", version)
        meter = self._meters.get_meter("fenhe", version)
        self._histograms = {
            name: meter.create_histogram(name, unit="s", explicit_bucket_boundaries_advisory=list(bounds))
            for name, bounds in BUCKETS.items()
        }

    def observe(self, record: Record, headers: Mapping[str, str], method: str, route: str, status: int) -> None:
        """Record a finished request. `headers` may hold the W3C `traceparent` and `tracestate`, by lower-case name."""
        operation = OPERATIONS.get(route)
        if operation is None:
            return
        try:
            self._span(record, headers, operation, _span_attributes(record, method, route, status), status)
            shared = _shared_attributes(record, operation, status)
            for name, seconds in _durations(record):
                self._histograms[name].record(seconds, shared)
        except Exception:
            logger.exception("tracing failed id=%s", record.id)

    def close(self) -> None:
        """Send what is left, within a few seconds. Blocks."""
        self._traces.force_flush(FLUSH_MS)
        self._traces.shutdown()
        self._meters.shutdown(FLUSH_MS)

    def _span(
        self, record: Record, headers: Mapping[str, str], operation: str, attributes: Attributes, status: int
    ) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        clock = Clock()
        span = self._tracer.start_span(
            f"{operation} {record.student}" if record.student else operation,
            TraceContextTextMapPropagator().extract(headers),
            SpanKind.SERVER,
            {**_shared_attributes(record, operation, status), **attributes},
            start_time=clock.ns(record.started_s),
        )
        if status >= 500:
            span.set_status(Status(StatusCode.ERROR, record.error))
        times = record.timings
        if times is not None and span.is_recording():
            for name, at_s in (("admitted", times.admitted_s), ("first token", times.first_token_s)):
                if at_s is not None:
                    span.add_event(name, timestamp=clock.ns(at_s))
        span.end(clock.now_ns)


class Clock:
    """Nanoseconds since 1970 of a time on the monotonic clock."""

    def __init__(self) -> None:
        self.now_ns = time.time_ns()
        self._now_s = time.monotonic()

    def ns(self, monotonic_s: float) -> int:
        return self.now_ns - int((self._now_s - monotonic_s) * NANO)


def _shared_attributes(record: Record, operation: str, status: int) -> Attributes:
    """Attributes of spans and of metrics: only those with few different values."""
    shared: Attributes = {"gen_ai.operation.name": operation, "gen_ai.provider.name": "fenhe"}
    if record.student is not None:
        shared["gen_ai.response.model"] = record.student
    if status >= 400:
        shared["error.type"] = record.error or str(status)
    return shared


def _span_attributes(record: Record, method: str, route: str, status: int) -> Attributes:
    attributes: dict[str, Any] = {
        "http.request.method": method,
        "http.route": route,
        "http.response.status_code": status,
        "gen_ai.request.id": record.id,
        "gen_ai.usage.input_tokens": record.num_prompt_tokens,
        "gen_ai.usage.cache_read.input_tokens": record.num_cached_tokens,
        "gen_ai.usage.output_tokens": record.num_tokens,
        "gen_ai.response.finish_reasons": record.finish_reasons or None,
        "gen_ai.latency.time_in_queue": record.queue_s,
        "gen_ai.latency.time_to_first_token": record.ttft_s,
        "gen_ai.latency.e2e": time.monotonic() - record.started_s,
        "fenhe.task": record.task,
        "fenhe.path": record.path,
        "fenhe.confidence": record.confidence,
        "fenhe.cache": record.cache,
        "fenhe.tenant": record.tenant,
    }
    return {name: value for name, value in attributes.items() if value is not None}


def _durations(record: Record) -> Iterator[tuple[str, float]]:
    """Units: seconds, from the request's arrival; time per token is decode time over the tokens after the first."""
    yield "gen_ai.server.request.duration", time.monotonic() - record.started_s
    times = record.timings
    if times is None or times.first_token_s is None:
        return
    yield "gen_ai.server.time_to_first_token", times.first_token_s - record.started_s
    if len(record.finish_reasons) == 1 and record.num_tokens is not None and record.num_tokens > 1:
        decode_s = times.finished_s - times.first_token_s
        yield "gen_ai.server.time_per_output_token", decode_s / (record.num_tokens - 1)


def make_tracing(config: TracingConfig, version: str) -> Tracing | None:
    """None when it is off. Raises: ConfigError when the packages for it are missing."""
    if not config.enabled:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigError(
            f"tracing needs OpenTelemetry ({error}); install it with `pip install 'fenhe[otel]'`"
        ) from None
    base = None if config.endpoint is None else config.endpoint.rstrip("/")
    spans = OTLPSpanExporter(None if base is None else f"{base}/v1/traces", timeout=config.timeout_s)
    metrics = OTLPMetricExporter(None if base is None else f"{base}/v1/metrics", timeout=config.timeout_s)
    logger.info("tracing on endpoint=%s sample_ratio=%g", base or "of the environment", config.sample_ratio)
    reader = PeriodicExportingMetricReader(metrics, config.metric_interval_s * 1000, config.timeout_s * 1000)
    return Tracing(config, version, BatchSpanProcessor(spans), reader)
