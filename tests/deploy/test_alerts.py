"""Each alert fires on the fault it is for, and none on a healthy fleet: the shipped rules in promtool's own clock."""

import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy.programs import need_program
from tests.deploy.promql import RULES, alerts

pytestmark = pytest.mark.deploy

Series = dict[str, str]
TARGET = 'job="fenhe",namespace="llm",pod="fenhe-0",instance="10.0.0.1:8000"'
BY_MODEL = f'{TARGET},model_name="small",engine="0"'
BY_STUDENT = f'{TARGET},student="small"'
BY_USE = f'{BY_STUDENT},task="legal",path="wide",head="cheap"'
OK = f'fenhe_http_requests_total{{{TARGET},route="/v1/chat/completions",method="POST",status="200"}}'
FAILED = f'fenhe_http_requests_total{{{TARGET},route="/v1/chat/completions",method="POST",status="500"}}'
HOURS = 8


def over(value: str, *, times: int = HOURS * 60) -> str:
    """A series of a sample a minute: `0` stays, `0+5` grows by 5."""
    return f"{value}x{times}" if "+" in value else f"{value}+0x{times}"


def histogram(name: str, good: str, every: str, le: str, labels: str = BY_MODEL) -> Series:
    return {
        f'{name}_bucket{{{labels},le="{le}"}}': over(good),
        f'{name}_bucket{{{labels},le="+Inf"}}': over(every),
        f"{name}_count{{{labels}}}": over(every),
    }


HEALTHY: Series = {
    f"up{{{TARGET}}}": over("1"),
    f"fenhe_engine_healthy{{{BY_MODEL}}}": over("1"),
    f"process_start_time_seconds{{{TARGET}}}": over("1000"),
    f'fenhe_upstream_up{{{BY_STUDENT},upstream="http://vllm:8000/v1"}}': over("1"),
    f"fenhe_last_reload_successful{{{TARGET}}}": over("1"),
    OK: over("0+600"),
    FAILED: over("0"),
    **histogram("vllm:time_to_first_token_seconds", "0+600", "0+600", "1.0"),
    **histogram("vllm:request_time_per_output_token_seconds", "0+600", "0+600", "0.1"),
    f'fenhe_admission_refusals_total{{{BY_STUDENT},code="queue_full"}}': over("0"),
    f"fenhe_queued_tokens{{{BY_STUDENT}}}": over("100"),
    f"fenhe_drain_tokens_per_second{{{BY_STUDENT}}}": over("1000"),
    f"vllm:kv_cache_usage_perc{{{BY_MODEL}}}": over("0.4"),
    f"vllm:num_preemptions_total{{{BY_MODEL}}}": over("0"),
    f"fenhe_failed_steps_total{{{BY_MODEL}}}": over("0"),
    f"fenhe_classifier_faults_total{{{TARGET}}}": over("0"),
    f'fenhe_route_confidence_count{{{TARGET},task="math"}}': over("0+300"),
    f'fenhe_route_confidence_count{{{TARGET},task="general"}}': over("0+300"),
    f'fenhe_path_sequences_total{{{BY_STUDENT},path="full"}}': over("0+300"),
    f'fenhe_path_sequences_total{{{BY_STUDENT},path="wide"}}': over("0+300"),
    f"fenhe_online_kept_high{{{BY_USE}}}": over("0.85"),
    f"fenhe_online_floor{{{BY_USE}}}": over("0.75"),
    f"fenhe_online_samples{{{BY_USE}}}": over("60"),
    f'fenhe_cache_store_errors_total{{{TARGET},operation="get",kind="TimeoutError"}}': over("0"),
    f'fenhe_cache_breaker_open{{{TARGET},operation="get"}}': over("0"),
}

BEFORE = 6 * 60
SHIFTED = {
    f'fenhe_path_sequences_total{{{BY_STUDENT},path="full"}}': f"0+300x{BEFORE} {300 * BEFORE}+590x120",
    f'fenhe_path_sequences_total{{{BY_STUDENT},path="wide"}}': f"0+300x{BEFORE} {300 * BEFORE}+10x120",
}
FAULTS: dict[str, Series] = {
    "FenheObjectiveBurnsFast": {FAILED: over("0+100")},
    "FenheObjectiveBurnsSlowly": histogram("vllm:time_to_first_token_seconds", "0+390", "0+600", "1.0"),
    "FenheReplicaDown": {f"up{{{TARGET}}}": over("0")},
    "FenheAbsent": {f"fenhe_engine_healthy{{{BY_MODEL}}}": "_x10"},
    "FenheEngineUnhealthy": {f"fenhe_engine_healthy{{{BY_MODEL}}}": over("0")},
    "FenheUpstreamDown": {f'fenhe_upstream_up{{{BY_STUDENT},upstream="http://vllm:8000/v1"}}': over("0")},
    "FenheRestartLoop": {f"process_start_time_seconds{{{TARGET}}}": "1000+200x1800"},
    "FenheStepsFail": {f"fenhe_failed_steps_total{{{BY_MODEL}}}": over("0+1")},
    "FenheReloadFailed": {f"fenhe_last_reload_successful{{{TARGET}}}": over("0")},
    "FenheRefusesWork": {f'fenhe_admission_refusals_total{{{BY_STUDENT},code="queue_full"}}': over("0+60")},
    "FenheQueueIsLong": {f"fenhe_queued_tokens{{{BY_STUDENT}}}": over("40000")},
    "FenheMemoryForKvIsFull": {f"vllm:kv_cache_usage_perc{{{BY_MODEL}}}": over("0.97")},
    "FenhePreempts": {f"vllm:num_preemptions_total{{{BY_MODEL}}}": over("0+30")},
    "FenheClassifierFails": {f"fenhe_classifier_faults_total{{{TARGET}}}": over("0+1")},
    "FenheClassifierAbstains": {f'fenhe_route_confidence_count{{{TARGET},task="math"}}': over("0+30")},
    "FenhePathMixShifted": SHIFTED,
    "FenhePathBelowFloor": {f"fenhe_online_kept_high{{{BY_USE}}}": over("0.7")},
    "FenheCacheFails": {f'fenhe_cache_store_errors_total{{{TARGET},operation="get",kind="TimeoutError"}}': over("0+2")},
    "FenheCacheLeftAlone": {f'fenhe_cache_breaker_open{{{TARGET},operation="get"}}': over("1")},
}


def run_promtool(series: Series, expected: dict[str, int | None], folder: Path, at: str = f"{HOURS}h") -> str:
    """What promtool says when the alerts that fire are not these; expressions by what they must give."""
    program = need_program("promtool", fix="make test-deploy DEBIAN=1 installs it")
    tests = [
        {"expr": expression, "eval_time": at, "exp_samples": [{"labels": "{}", "value": value}] if value else []}
        for expression, value in expected.items()
    ]
    case = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "promql_expr_test": tests,
            }
        ],
    }
    file = folder / "case.yaml"
    file.write_text(yaml.safe_dump(case))
    done = subprocess.run([program, "test", "rules", str(file)], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def firing(alert: str = ".+") -> str:
    return f'sum(count by (alertname) (ALERTS{{alertname=~"{alert}",alertstate="firing"}}) > bool 0)'


def test_rules_are_rules() -> None:
    program = need_program("promtool", fix="make test-deploy DEBIAN=1 installs it")
    done = subprocess.run([program, "check", "rules", str(RULES)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_nothing_fires_on_a_healthy_fleet(tmp_path: Path) -> None:
    assert run_promtool(HEALTHY, {firing(): None}, tmp_path) == ""


def test_every_alert_has_its_fault() -> None:
    assert FAULTS.keys() == alerts().keys()


@pytest.mark.parametrize("alert", FAULTS)
def test_alert_fires_on_its_fault(alert: str, tmp_path: Path) -> None:
    assert run_promtool({**HEALTHY, **FAULTS[alert]}, {firing(alert): 1}, tmp_path) == ""
