"""Grafana's dashboards, made from these tables: `REWRITE=1 pytest tests/deploy/test_dashboards.py` writes them.

`$where` in an expression is the choice of namespace and pods that every dashboard offers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

WHERE = 'namespace=~"$namespace",pod=~"$pod"'
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS = 3
WIDTH, HEIGHT = 24 // COLUMNS, 8


@dataclass(slots=True, frozen=True)
class Panel:
    """`queries` are pairs of an expression and what its series are called."""

    title: str
    queries: Sequence[tuple[str, str]]
    unit: str = "short"
    kind: str = "timeseries"
    about: str = ""


@dataclass(slots=True, frozen=True)
class Board:
    name: str
    title: str
    panels: Sequence[Panel] = field(default_factory=tuple)


def quantiles(metric: str, by: str = "") -> list[tuple[str, str]]:
    inner = f"sum by (le{', ' + by if by else ''}) (rate({metric}_bucket{{$where}}[$__rate_interval]))"
    ends = f" {{{{{by}}}}}" if by else ""
    return [(f"histogram_quantile({share}, {inner})", f"p{round(share * 100)}{ends}") for share in (0.5, 0.95, 0.99)]


def rate(metric: str, by: str, more: str = "") -> tuple[str, str]:
    name = " ".join(f"{{{{{label}}}}}" for label in by.split(", ")) if by else metric.removesuffix("_total")
    sums = f"sum by ({by})" if by else "sum"
    return f"{sums} (rate({metric}{{$where{more}}}[$__rate_interval]))", name


def gauge(metric: str, by: str, how: str = "sum", more: str = "") -> tuple[str, str]:
    name = " ".join(f"{{{{{label}}}}}" for label in by.split(", ")) if by else how
    return f"{how}{f' by ({by})' if by else ''} ({metric}{{$where{more}}})", name


def share(part: str, whole: str, by: str = "") -> str:
    sums = f"sum by ({by})" if by else "sum"
    return f"{sums} (rate({part}[$__rate_interval])) / {sums} (rate({whole}[$__rate_interval]))"


def part(metric: str, matchers: str) -> tuple[str, str]:
    """The share of a counter's increase that has these labels as well."""
    return share(f"{metric}{{$where,{matchers}}}", f"{metric}{{$where}}"), "share"


def of(part_metric: str, whole_metric: str, by: str) -> tuple[str, str]:
    return share(f"{part_metric}{{$where}}", f"{whole_metric}{{$where}}", by), f"{{{{{by}}}}}"


SPENT, FULL = "fenhe_compute_multiply_adds_total{$where}", "fenhe_compute_full_multiply_adds_total{$where}"

ROWS = "sum by (stage) (rate(fenhe_stage_rows_total{$where}[$__rate_interval]))"

BOARDS = (
    Board(
        "overview",
        "fenhe: overview",
        [
            Panel("Replicas", [("count(fenhe_engine_healthy{$where} == 1)", "healthy")], kind="stat"),
            Panel("Requests a second", [rate("fenhe_http_requests_total", "status", ',route=~"/v1/.+"')], "reqps"),
            Panel(
                "Answered with 5xx",
                [part("fenhe_http_requests_total", 'status=~"5.."')],
                "percentunit",
            ),
            Panel("Time to the first token", quantiles("vllm:time_to_first_token_seconds"), "s"),
            Panel("Time per token", quantiles("vllm:request_time_per_output_token_seconds"), "s"),
            Panel("Whole request", quantiles("vllm:e2e_request_latency_seconds"), "s"),
            Panel(
                "Tokens a second",
                [rate("vllm:generation_tokens_total", "model_name"), rate("vllm:prompt_tokens_total", "")],
                "short",
            ),
            Panel("Running", [gauge("vllm:num_requests_running", "model_name")]),
            Panel("Waiting", [gauge("vllm:num_requests_waiting", "model_name")]),
            Panel(
                "Objectives missed, of what may be missed",
                [
                    (
                        'fenhe:missed:ratio_rate5m{namespace=~"$namespace"}'
                        " / on (objective) group_left () fenhe:budget",
                        "{{objective}}",
                    )
                ],
                about="1: the month's budget lasts exactly a month. Needs the recording rules.",
            ),
            Panel("How answers ended", [rate("vllm:request_success_total", "finished_reason")]),
            Panel("Share of compute spent", [(share(SPENT, FULL), "of the full path's")], "percentunit"),
        ],
    ),
    Board(
        "paths",
        "fenhe: paths and modules",
        [
            Panel("Answers by path", [rate("fenhe_path_sequences_total", "student, path")]),
            Panel("Share of compute spent, by task", [(share(SPENT, FULL, "task"), "{{task}}")], "percentunit"),
            Panel(
                "Multiply-adds saved a second",
                [
                    (
                        f"sum by (student) (rate({FULL}[$__rate_interval]))"
                        f" - sum by (student) (rate({SPENT}[$__rate_interval]))",
                        "{{student}}",
                    )
                ],
            ),
            Panel(
                "How often each module runs",
                [rate("fenhe_stage_runs_total", "stage")],
                about="Forward passes a second of a module, an exit or a head.",
            ),
            Panel(
                "Rows per run",
                [of("fenhe_stage_rows_total", "fenhe_stage_runs_total", "stage")],
                about="How many rows share one pass over the weights.",
            ),
            Panel(
                "Share of rows that a module computes",
                [(f"{ROWS} / on () group_left () max({ROWS})", "{{stage}}")],
                "percentunit",
            ),
            Panel("Decisions by task", [rate("fenhe_route_decisions_total", "task")]),
            Panel("Decisions by reason", [rate("fenhe_route_decisions_total", "reason")]),
            Panel("The classifier's confidence", quantiles("fenhe_route_confidence"), "percentunit"),
            Panel(
                "Requests that it is unsure of", [part("fenhe_route_confidence_count", 'task="general"')], "percentunit"
            ),
            Panel("Classifier failures", [rate("fenhe_classifier_faults_total", "")]),
            Panel("Time to decide", quantiles("fenhe_route_seconds"), "s"),
            Panel(
                "Quality kept on live traffic",
                [
                    gauge("fenhe_online_kept", "task, path, head", "avg"),
                    gauge("fenhe_online_floor", "task", "min"),
                ],
                "percentunit",
                about="Share of the full path's quality, by scored answers; the task's floor.",
            ),
            Panel(
                "Its interval",
                [
                    gauge("fenhe_online_kept_low", "task, path, head", "min"),
                    gauge("fenhe_online_kept_high", "task, path, head", "max"),
                ],
                "percentunit",
            ),
            Panel("Answers scored a second", [rate("fenhe_online_scored_total", "path, kind")]),
            Panel("Answers left out a second", [rate("fenhe_online_left_out_total", "reason")]),
            Panel(
                "Share of the engine's time for scoring",
                [of("fenhe_online_seconds_total", "fenhe_engine_busy_seconds_total", "student")],
                "percentunit",
            ),
            Panel("Paths out of default routing", [gauge("fenhe_online_path_open", "task, path, head", "min")]),
        ],
    ),
    Board(
        "capacity",
        "fenhe: capacity",
        [
            Panel("Running, by replica", [gauge("vllm:num_requests_running", "pod")]),
            Panel("Tokens promised to what waits", [gauge("fenhe_queued_tokens", "pod")]),
            Panel("Tokens promised to what runs", [gauge("fenhe_admitted_tokens", "pod")]),
            Panel("Waiting, by priority", [gauge("fenhe_queued_requests", "priority")]),
            Panel("Tokens computed a second under load", [gauge("fenhe_drain_tokens_per_second", "pod")]),
            Panel("Time in the queue", quantiles("vllm:request_queue_time_seconds"), "s"),
            Panel("KV memory in use", [gauge("vllm:kv_cache_usage_perc", "pod", "max")], "percentunit"),
            Panel("Prefix cache", [gauge("fenhe_prefix_cache_bytes", "pod")], "bytes"),
            Panel("Put back to wait", [rate("vllm:num_preemptions_total", "pod")]),
            Panel("Refused", [rate("fenhe_admission_refusals_total", "code")]),
            Panel("Refused connections", [rate("fenhe_connection_refusals_total", "code")]),
            Panel("Steps a second", [rate("fenhe_steps_total", "pod"), rate("fenhe_failed_steps_total", "")]),
            Panel("Running at upstreams", [gauge("fenhe_upstream_running", "upstream")]),
            Panel(
                "Failures and retries of upstreams",
                [rate("fenhe_upstream_failures_total", "upstream"), rate("fenhe_upstream_retries_total", "")],
            ),
            Panel("Upstreams that answer", [gauge("fenhe_upstream_up", "upstream", "min")]),
            Panel("Memory", [gauge("process_resident_memory_bytes", "pod")], "bytes"),
            Panel("Cores in use", [rate("process_cpu_seconds_total", "pod")]),
            Panel(
                "Starts in the last hour",
                [("sum by (pod) (changes(process_start_time_seconds{$where}[1h]))", "{{pod}}")],
            ),
        ],
    ),
    Board(
        "cache",
        "fenhe: cache",
        [
            Panel("Where answers come from", [rate("fenhe_cache_requests_total", "outcome")]),
            Panel(
                "Share of answers not generated",
                [part("fenhe_cache_requests_total", 'outcome=~"hit|join"')],
                "percentunit",
            ),
            Panel("Kept in this process", [gauge("fenhe_cache_bytes", "pod")], "bytes"),
            Panel(
                "Stored and removed",
                [rate("fenhe_cache_stored_total", ""), rate("fenhe_cache_evictions_total", "want")],
            ),
            Panel("Failed calls to the cache server", [rate("fenhe_cache_store_errors_total", "operation, kind")]),
            Panel("Cache server not asked", [gauge("fenhe_cache_breaker_open", "pod, operation", "max")]),
            Panel(
                "Prompt tokens found in the prefix cache",
                [of("vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total", "model_name")],
                "percentunit",
            ),
            Panel(
                "The same, by module",
                [of("fenhe_prefix_hit_tokens_total", "fenhe_prefix_query_tokens_total", "stage")],
                "percentunit",
            ),
            Panel("Hits on similar questions", [rate("fenhe_cache_similar_hits_total", "")]),
        ],
    ),
    Board(
        "tenants",
        "fenhe: tenants",
        [
            Panel("Requests a second", [rate("fenhe_tenant_requests_total", "tenant")], "reqps"),
            Panel("Tokens of answers a second", [rate("fenhe_tenant_tokens_total", "tenant", ',kind="completion"')]),
            Panel("Tokens of prompts a second", [rate("fenhe_tenant_tokens_total", "tenant", ',kind="prompt"')]),
            Panel("Told to wait (429)", [rate("fenhe_tenant_requests_total", "tenant", ',status="429"')], "reqps"),
            Panel("Answered with 5xx", [rate("fenhe_tenant_requests_total", "tenant", ',status=~"5.."')], "reqps"),
            Panel("Refused for their key", [rate("fenhe_key_refusals_total", "code")]),
            Panel(
                "Tokens of the last day",
                [("sum by (tenant) (increase(fenhe_tenant_tokens_total{$where}[1d]))", "{{tenant}}")],
                kind="bargauge",
            ),
        ],
    ),
)


def dashboard(board: Board) -> dict[str, Any]:
    """As Grafana 10 and later import it."""
    return {
        "uid": f"fenhe-{board.name}",
        "title": board.title,
        "tags": ["fenhe"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": list(_variables())},
        "panels": [_panel(index, panel) for index, panel in enumerate(board.panels)],
    }


def _variables() -> Iterator[dict[str, Any]]:
    yield {"type": "datasource", "name": "datasource", "label": "Prometheus", "query": "prometheus"}
    for name, query in (
        ("namespace", "label_values(fenhe_engine_healthy, namespace)"),
        ("pod", 'label_values(fenhe_engine_healthy{namespace=~"$namespace"}, pod)'),
    ):
        yield {
            "type": "query",
            "name": name,
            "datasource": DATASOURCE,
            "query": {"query": query, "refId": name},
            "refresh": 2,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"text": "All", "value": "$__all"},
        }


def _panel(index: int, panel: Panel) -> dict[str, Any]:
    place = {"x": index % COLUMNS * WIDTH, "y": index // COLUMNS * HEIGHT, "w": WIDTH, "h": HEIGHT}
    return {
        "id": index + 1,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": DATASOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {},
        "targets": [
            {"refId": chr(ord("A") + number), "expr": expression.replace("$where", WHERE), "legendFormat": name}
            for number, (expression, name) in enumerate(panel.queries)
        ],
    }


def expressions() -> Iterator[tuple[str, str]]:
    """Where each expression stands, and it as Prometheus takes it."""
    for board in BOARDS:
        for panel in dashboard(board)["panels"]:
            for target in panel["targets"]:
                yield f"{board.name}: {panel['title']}", plain(target["expr"])


def plain(expression: str) -> str:
    """Without Grafana's variables: everything, over a minute."""
    for variable, value in (("$__rate_interval", "1m"), ("$namespace", ".*"), ("$pod", ".*")):
        expression = expression.replace(variable, value)
    return expression
