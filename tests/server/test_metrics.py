"""Metric names others depend on, and that they count what they say."""

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.server.conftest import Served, Start, until

VLLM_NAMES = """num_requests_running num_requests_waiting kv_cache_usage_perc prompt_tokens generation_tokens
request_success num_preemptions prefix_cache_queries prefix_cache_hits time_to_first_token_seconds
inter_token_latency_seconds request_time_per_output_token_seconds e2e_request_latency_seconds
request_queue_time_seconds request_prefill_time_seconds request_decode_time_seconds request_inference_time_seconds
request_prompt_tokens request_generation_tokens request_params_n request_params_max_tokens cache_config_info"""
OUR_NAMES = """stage_runs stage_rows path_sequences prefix_query_tokens prefix_hit_tokens path_loaded steps
failed_steps http_requests engine_healthy kv_used_bytes prefix_cache_bytes"""


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
