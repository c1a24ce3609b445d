"""Spans and GenAI metrics of real requests, collected in memory; and how tracing is switched on."""

import contextlib
import hashlib
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from engines.scripted import Line
from models.errors import ConfigError, StepFailed
from server import app
from server.settings.config import KeysConfig, ServerConfig, TracingConfig
from server.telemetry.tracing import BUCKETS, Tracing, make_tracing
from tests.server.conftest import SCRIPT, Served, TinyStudent, make_engine, open_scripted, run_server, until

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SECRET = "the-owl-flies-at-noon"
KAPUT = Line(pieces=(), error=StepFailed("broken"))


class Watched:
    """A traced server, and the spans and metrics it sent."""

    def __init__(self, student: TinyStudent, *, server: ServerConfig | None = None, **settings: Any) -> None:
        self.spans, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        config = TracingConfig(enabled=True, **settings)
        self.tracing = Tracing(config, "1.2.3", SimpleSpanProcessor(self.spans), self.reader)
        engine = make_engine({**SCRIPT, "kaput": KAPUT})
        self.server = run_server([open_scripted(student, engine)], server or ServerConfig(), tracing=self.tracing)

    def ask(self, served: Served, prompt: str = "hello", *, headers: Any = None, **fields: Any) -> ReadableSpan:
        """The one span of a completion."""
        self.spans.clear()
        served.post("/v1/completions", {"model": "auto", "prompt": prompt, **fields}, headers=headers)
        assert until(lambda: len(self.spans.get_finished_spans()) == 1)
        return self.spans.get_finished_spans()[0]

    def points(self) -> dict[str, Any]:
        """Every metric's data points by name."""
        data = self.reader.get_metrics_data()
        assert data is not None
        return {
            metric.name: list(metric.data.data_points)
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


@pytest.fixture
def watch(student: TinyStudent) -> Iterator[Callable[..., tuple[Watched, Served]]]:
    with contextlib.ExitStack() as stack:

        def begin(**settings: Any) -> tuple[Watched, Served]:
            watched = Watched(student, **settings)
            return watched, stack.enter_context(watched.server)

        yield begin


Watch = Callable[..., tuple[Watched, Served]]


def test_span_says_what_a_generation_was(watch: Watch) -> None:
    watched, served = watch()
    span = watched.ask(served, "math", headers={"x-request-id": "abc"})
    assert (span.name, span.kind) == ("text_completion tiny", SpanKind.SERVER)
    told = dict(span.attributes or {})
    assert {
        name: told[name] for name in told if name.startswith(("http.", "fenhe.", "gen_ai.usage", "gen_ai.req"))
    } == {
        "http.request.method": "POST",
        "http.route": "/v1/completions",
        "http.response.status_code": 200,
        "gen_ai.request.id": "abc",
        "gen_ai.usage.input_tokens": 4,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.usage.output_tokens": 4,
        "fenhe.task": "math",
        "fenhe.path": "shallow",
        "fenhe.confidence": 0.9,
        "fenhe.cache": told["fenhe.cache"],
    }
    assert (told["gen_ai.operation.name"], told["gen_ai.response.model"]) == ("text_completion", "tiny")
    assert told["gen_ai.response.finish_reasons"] == ("stop",)
    assert 0 <= told["gen_ai.latency.time_in_queue"] <= told["gen_ai.latency.time_to_first_token"]  # type: ignore[operator]
    assert [event.name for event in span.events] == ["admitted", "first token"]
    assert span.start_time is not None
    assert span.end_time is not None
    assert span.start_time < span.events[0].timestamp <= span.events[1].timestamp <= span.end_time
    assert span.resource.attributes["service.name"] == "fenhe"


def test_span_takes_over_the_trace_of_its_caller(watch: Watch) -> None:
    watched, served = watch()
    span = watched.ask(served, headers={"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "a=b"})
    assert span.context is not None
    assert f"{span.context.trace_id:032x}" == TRACE
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == PARENT
    assert span.context.trace_state.to_header() == "a=b"


def test_span_obeys_the_callers_wish_not_to_be_sampled(watch: Watch) -> None:
    watched, served = watch()
    served.post(
        "/v1/completions",
        {"model": "auto", "prompt": "unsampled"},
        headers={"traceparent": f"00-{TRACE}-{PARENT}-00"},
    )
    assert until(lambda: "gen_ai.server.request.duration" in watched.points())
    assert watched.spans.get_finished_spans() == ()


def test_sample_ratio_decides_without_a_caller(watch: Watch) -> None:
    watched, served = watch(sample_ratio=0.0)
    served.post("/v1/completions", {"model": "auto", "prompt": "hello"})
    assert until(lambda: "gen_ai.server.request.duration" in watched.points())
    assert watched.spans.get_finished_spans() == ()


def test_rubbish_traceparent_begins_a_trace(watch: Watch) -> None:
    watched, served = watch()
    assert watched.ask(served, headers={"traceparent": "rubbish"}).parent is None


def test_span_of_a_failure_names_it(watch: Watch) -> None:
    watched, served = watch()
    span = watched.ask(served, "kaput")
    assert span.status.status_code is StatusCode.ERROR
    assert (span.attributes or {})["error.type"] == "step_failed"
    refused = watched.ask(served, "hello", suffix="x")
    assert refused.status.status_code is StatusCode.UNSET
    assert (refused.attributes or {})["error.type"] == "unsupported_parameter"


def test_span_has_the_method_that_was_used(watch: Watch) -> None:
    watched, served = watch()
    served.http.get("/v1/completions")
    assert until(lambda: len(watched.spans.get_finished_spans()) == 1)
    assert (watched.spans.get_finished_spans()[0].attributes or {})["http.request.method"] == "GET"


KEYED = ServerConfig(keys=KeysConfig(sha256=(hashlib.sha256(b"a").hexdigest(),)))
SAMPLED = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


def test_refusal_for_want_of_a_key_has_a_span_that_its_caller_does_not_rule(watch: Watch) -> None:
    watched, served = watch(server=KEYED)
    span = watched.ask(served, headers=SAMPLED)
    assert span.parent is None
    told = dict(span.attributes or {})
    assert (told["http.response.status_code"], told["http.route"]) == (401, "/v1/completions")
    assert watched.points()["gen_ai.server.request.duration"][0].attributes["error.type"] == "invalid_api_key"
    assert watched.ask(served, headers={**SAMPLED, "authorization": "Bearer a"}).parent is not None


def test_spans_hold_nothing_of_prompts_and_keys(watch: Watch) -> None:
    watched, served = watch()
    span = watched.ask(served, SECRET, headers={"authorization": f"Bearer {SECRET}"}, user=SECRET)
    assert SECRET not in span.to_json()


def test_pages_have_no_spans(watch: Watch) -> None:
    watched, served = watch()
    served.http.get("/v1/models")
    served.http.get("/health")
    watched.ask(served)


def test_metrics_have_the_names_and_buckets_of_the_conventions(watch: Watch) -> None:
    watched, served = watch()
    watched.ask(served, "long")
    assert until(lambda: set(watched.points()) == set(BUCKETS))
    for name, (point,) in watched.points().items():
        assert tuple(point.explicit_bounds) == BUCKETS[name]
        assert point.count == 1
        assert dict(point.attributes) == {
            "gen_ai.operation.name": "text_completion",
            "gen_ai.provider.name": "fenhe",
            "gen_ai.response.model": "tiny",
        }


def test_kept_answer_has_a_duration_alone(watch: Watch) -> None:
    watched, served = watch()
    for _ in range(2):
        watched.ask(served, "kept", temperature=0)
    assert until(lambda: watched.points()["gen_ai.server.request.duration"][0].count == 2)
    assert watched.points()["gen_ai.server.time_to_first_token"][0].count == 1


def test_exporter_that_fails_costs_no_answer(student: TinyStudent) -> None:
    watched = Watched(student)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no collector")

    watched.tracing._span = fail  # type: ignore[method-assign]
    with watched.server as served:
        assert served.post("/v1/completions", {"model": "auto", "prompt": "hello"}).is_success


def test_end_does_not_wait_for_a_collector_that_says_nothing(
    student: TinyStudent, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(app, "TRACING_CLOSE_S", 0.05)
    watched = Watched(student)
    ended, closed = threading.Event(), threading.Event()

    def close() -> None:
        if ended.wait(20):
            closed.set()

    watched.tracing.close = close  # type: ignore[method-assign]
    with watched.server:
        pass
    assert "the collector does not answer" in caplog.text
    assert not closed.is_set()
    ended.set()
    assert closed.wait(20)


def test_end_is_orderly_when_tracing_fails(student: TinyStudent, caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched(student)

    def fail() -> None:
        raise RuntimeError("no")

    watched.tracing.close = fail  # type: ignore[method-assign]
    caplog.set_level(logging.INFO)
    with watched.server:
        pass
    assert "tracing failed at the end" in caplog.text
    assert "engines stopped" in caplog.text


def test_tracing_is_off_by_default() -> None:
    assert make_tracing(ServerConfig().tracing, "1") is None


def test_tracing_without_its_packages_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"pip install 'fenhe\[otel\]'"):
        make_tracing(TracingConfig(enabled=True), "1")


def test_tracing_sends_to_the_endpoint_of_the_settings() -> None:
    """A collector that is not there: nothing waits for it for long, and nothing raises."""
    tracing = make_tracing(TracingConfig(enabled=True, endpoint="http://127.0.0.1:9/", timeout_s=0.1), "1")
    assert tracing is not None
    tracing.close()
