"""Metric names others depend on, and that they count what they say."""

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from engines.config import EngineConfig
from engines.scripted import Line
from models.errors import EngineUnhealthy
from server.telemetry.metrics import Metrics
from tests.server.conftest import Served, Start, StartPool, until

VLLM_NAMES = """num_requests_running num_requests_waiting kv_cache_usage_perc prompt_tokens generation_tokens
request_success num_preemptions prefix_cache_queries prefix_cache_hits time_to_first_token_seconds
inter_token_latency_seconds request_time_per_output_token_seconds e2e_request_latency_seconds
request_queue_time_seconds request_prefill_time_seconds request_decode_time_seconds request_inference_time_seconds
request_prompt_tokens request_generation_tokens request_params_n request_params_max_tokens cache_config_info"""
OUR_NAMES = """stage_runs stage_rows path_sequences prefix_query_tokens prefix_hit_tokens path_loaded steps
failed_steps http_requests engine_healthy kv_used_bytes prefix_cache_bytes route_decisions route_confidence
route_seconds classifier_faults compute_multiply_adds compute_full_multiply_adds"""


def samples(served: Served) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = text_string_to_metric_families(served.http.get("/metrics").text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def value(served: Served, name: str, **labels: str) -> float:
    found = [
        number
        for (sample, its), number in samples(served).items()
        if sample == name and frozenset(labels.items()) <= its
    ]
    assert len(found) == 1, (name, labels)
    return found[0]


def test_metrics_have_the_names_dashboards_know(served: Served) -> None:
    response = served.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    names = {family.name for family in text_string_to_metric_families(response.text)}
    assert {f"vllm:{name}" for name in VLLM_NAMES.split()} <= names
    assert {f"fenhe_{name}" for name in OUR_NAMES.split()} <= names


def test_metrics_count_finished_sequences(start: Start) -> None:
    served = start()
    assert served.chat("cached", n=2).status_code == 200
    assert served.chat("long", model="tiny:shallow", max_tokens=3).status_code == 200
    assert value(served, "vllm:request_success_total", finished_reason="stop", model_name="tiny") == 2
    assert value(served, "vllm:request_success_total", finished_reason="length") == 1
    assert value(served, "vllm:request_generation_tokens_sum") == 7
    assert value(served, "vllm:generation_tokens_total") == 7
    assert value(served, "vllm:prefix_cache_hits_total") == 14
    assert value(served, "vllm:request_params_n_count") == 2
    assert value(served, "vllm:time_to_first_token_seconds_count") == 3
    assert value(served, "vllm:inter_token_latency_seconds_count") == 4
    assert value(served, "fenhe_path_sequences_total", path="shallow") == 1
    assert value(served, "fenhe_stage_rows_total", stage="full") == 4


def test_metrics_count_http_by_route_and_status(start: Start) -> None:
    served = start()
    served.http.get("/v1/models/tiny:full")
    served.http.get("/v1/models/other")
    served.http.get("/nothing/at/all")
    route = "/v1/models/{model:path}"
    assert value(served, "fenhe_http_requests_total", route=route, status="200", method="GET") == 1
    assert value(served, "fenhe_http_requests_total", route=route, status="404") == 1
    assert value(served, "fenhe_http_requests_total", route="unmatched", status="404") == 1


def test_metrics_show_load_and_waiting(start: Start) -> None:
    served = start(is_loaded=False)
    assert value(served, "fenhe_path_loaded", path="shallow") == 0
    served.engine.load(3)
    assert value(served, "fenhe_path_loaded", path="shallow") == 1
    assert value(served, "fenhe_path_loaded", path="full") == 0.6
    with pytest.raises(httpx.ReadTimeout):
        served.post("/v1/completions", {"model": "auto", "prompt": "hello"}, timeout=0.3)
    assert until(lambda: value(served, "vllm:request_success_total", finished_reason="abort") == 1)


def test_metrics_count_decisions(start: Start) -> None:
    served = start()
    for prompt in ("math", "more math", "hello", "kaboom"):
        assert served.chat(prompt).status_code == 200
    assert served.chat("hello", model="tiny:full").status_code == 200
    assert served.route("math").status_code == 200
    assert served.chat("x", fenhe={"path": "nowhere"}).status_code == 404
    decisions = "fenhe_route_decisions_total"
    assert value(served, decisions, student="tiny", task="math", path="shallow", reason="task") == 2
    assert value(served, decisions, task="general", path="full", reason="general") == 1
    assert value(served, decisions, reason="classifier_unavailable") == 1
    assert value(served, decisions, reason="wished_path") == 1
    assert value(served, "fenhe_classifier_faults_total") == 1
    assert value(served, "fenhe_route_confidence_count", task="math") == 2
    assert value(served, "fenhe_route_confidence_bucket", task="math", le="0.85") == 0
    assert value(served, "fenhe_route_confidence_count", task="general") == 1
    assert value(served, "fenhe_route_seconds_count") == 5


def test_metrics_of_routing_reach_from_ten_microseconds_to_a_tenth_of_a_second(served: Served) -> None:
    bounds = [dict(labels)["le"] for name, labels in samples(served) if name == "fenhe_route_seconds_bucket"]
    finite = sorted(float(bound) for bound in bounds if bound != "+Inf")
    assert (finite[0], finite[-1]) == (1e-5, 0.1)


def test_metrics_are_told_per_student(start_pool: StartPool) -> None:
    served = start_pool({"one": (), "two": ()}, two={"is_loaded": False})
    assert served.chat("hello", model="one", n=2).status_code == 200
    assert value(served, "vllm:request_success_total", model_name="one", finished_reason="stop") == 2
    assert value(served, "vllm:request_success_total", model_name="two", finished_reason="stop") == 0
    assert value(served, "vllm:generation_tokens_total", model_name="one") == 8
    assert value(served, "vllm:generation_tokens_total", model_name="two") == 0
    assert value(served, "fenhe_path_loaded", student="two", path="full") == 0
    assert value(served, "fenhe_path_sequences_total", student="one", path="full") == 2
    assert value(served, "vllm:cache_config_info", model_name="two") == 1


def test_metrics_count_a_fallback_where_it_ran(start_pool: StartPool) -> None:
    sick = Line(refusal=EngineUnhealthy("stopping"))
    served = start_pool({"one": (), "two": ()}, one={"script": {"hello": sick}})
    assert served.chat("hello").headers["x-fenhe-student"] == "two"
    assert value(served, "fenhe_route_decisions_total", student="one") == 1
    assert value(served, "fenhe_path_sequences_total", student="two") == 1
    assert value(served, "vllm:request_params_n_count", model_name="two") == 1


SPENT, FULL = "fenhe_compute_multiply_adds_total", "fenhe_compute_full_multiply_adds_total"


def test_metrics_count_compute_spent_and_that_of_the_full_path(start: Start) -> None:
    """As the answers' usage says, added up; what is kept or shared adds nothing."""
    served = start()
    answers = [served.chat("math"), served.chat("more math", n=2), served.chat("math", temperature=0)]
    compute = [answer.json()["usage"]["fenhe"] for answer in answers]
    assert served.chat("math", temperature=0).headers["x-fenhe-cache"] == "hit"
    labels = {"student": "tiny", "task": "math", "path": "shallow"}
    assert value(served, SPENT, **labels) == sum(one["multiply_adds"] for one in compute)
    assert value(served, FULL, **labels) == sum(one["full_multiply_adds"] for one in compute)
    assert served.chat("hello").status_code == 200
    whole = {"student": "tiny", "task": "general", "path": "full"}
    assert value(served, SPENT, **whole) == value(served, FULL, **whole) > 0


def test_metrics_count_compute_of_what_was_aborted(start: Start) -> None:
    served = start()
    body = {"model": "auto", "prompt": "slow", "max_tokens": 200, "stream": True}
    with served.http.stream("POST", "/v1/completions", json=body) as running:
        assert next(running.iter_raw())
    assert until(lambda: value(served, "vllm:request_success_total", finished_reason="abort") == 1)
    num_tokens = value(served, "vllm:request_generation_tokens_sum")
    assert 1 <= num_tokens < 200
    assert value(served, SPENT) == (4 + num_tokens) * 5760 + num_tokens * 2064  # see test_usage.py


def test_metrics_count_no_compute_of_what_never_began(start: Start) -> None:
    served = start(is_loaded=False)
    with pytest.raises(httpx.ReadTimeout):
        served.post("/v1/completions", {"model": "auto", "prompt": "hello"}, timeout=0.3)
    assert until(lambda: value(served, "vllm:request_success_total", finished_reason="abort") == 1)
    assert not [name for name, _ in samples(served) if name in (SPENT, FULL)]


def test_metrics_of_a_student_that_is_gone_are_dropped() -> None:
    metrics = Metrics(EngineConfig())
    for name in ("first", "second"):
        metrics.compute.observe(name, "math", "full", spent=3, full=4)
    metrics.forget_student("first")
    text = metrics.render().decode()
    assert 'student="first"' not in text
    assert 'fenhe_compute_full_multiply_adds_total{path="full",student="second",task="math"} 4.0' in text


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("time_to_first_token_seconds", (0.001, 0.005, 0.02, 0.25, 10, 160, 2560)),
        ("inter_token_latency_seconds", (0.01, 0.025, 0.05, 0.1, 1, 80)),
        ("request_queue_time_seconds", (0.3, 0.5, 0.8, 1, 60, 7680)),
        ("e2e_request_latency_seconds", (0.3, 0.5, 0.8, 1, 60, 7680)),
    ],
)
def test_duration_buckets_have_vllms_bounds_and_tell_milliseconds_apart(
    served: Served, name: str, theirs: tuple[float, ...]
) -> None:
    served.chat("hello")
    found = {float(dict(labels)["le"]) for sample, labels in samples(served) if sample == f"vllm:{name}_bucket"}
    assert set(theirs) < found
    assert len([bound for bound in found if bound < 0.01]) >= 2
