"""The engines' own counts, per student, as Prometheus families."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from engines.contract import EngineStatus

ENGINE = "0"
LABELS = ("model_name", "engine")

Statuses = Sequence[tuple[str, EngineStatus]]
"""Each student's name and what its engine says now."""


class EngineCollector(Collector):
    """Reads the engines' own counts on every scrape; a student that is gone is no longer reported."""

    def __init__(self, read: Callable[[], Statuses]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        statuses = self._read()
        yield from _engine_gauges(statuses)
        yield from _engine_counters(statuses)
        yield from _stage_counters(statuses)
        yield _loading(statuses)

    def describe(self) -> Iterable[Metric]:
        return []


def _kv_share(status: EngineStatus) -> float:
    return status.kv_used_bytes / status.kv_capacity_bytes if status.kv_capacity_bytes else 0.0


_GAUGES: tuple[tuple[str, str, Callable[[EngineStatus], float]], ...] = (
    ("vllm:num_requests_running", "Sequences being generated.", lambda status: status.num_running),
    ("vllm:num_requests_waiting", "Sequences waiting to be admitted.", lambda status: status.num_waiting),
    ("vllm:kv_cache_usage_perc", "Share of the KV memory in use; 1 is all.", _kv_share),
    ("fenhe_kv_used_bytes", "KV memory in use.", lambda status: status.kv_used_bytes),
    ("fenhe_prefix_cache_bytes", "Memory of the prefix cache.", lambda status: status.prefix_cache_bytes),
    ("fenhe_engine_healthy", "1 while the engine answers.", lambda status: status.is_healthy),
)
_COUNTERS: tuple[tuple[str, str, Callable[[EngineStatus], int]], ...] = (
    ("vllm:prompt_tokens", "Prompt tokens processed.", lambda status: status.num_prompt_tokens),
    ("vllm:generation_tokens", "Tokens generated.", lambda status: status.num_generation_tokens),
    ("fenhe_sequences_accepted", "Sequences the engine accepted; each ends once.", lambda status: status.num_accepted),
    ("vllm:num_preemptions", "Sequences put back to wait for memory.", lambda status: status.num_preemptions),
    (
        "fenhe_pauses",
        "Sequences that paused so that another tenant had its share of the slots.",
        lambda status: status.num_pauses,
    ),
    ("fenhe_steps", "Engine steps.", lambda status: status.num_steps),
    ("fenhe_failed_steps", "Engine steps that failed.", lambda status: status.num_failed_steps),
)
_BY_STAGE: tuple[tuple[str, str, Callable[[EngineStatus], Mapping[str, int]]], ...] = (
    ("fenhe_stage_runs", "Forward passes of a module, an exit or a head.", lambda status: status.stage_runs),
    ("fenhe_stage_rows", "Rows those passes computed.", lambda status: status.stage_rows),
    ("fenhe_prefix_query_tokens", "Prompt tokens looked up per module.", lambda status: status.prefix_query_tokens),
    ("fenhe_prefix_hit_tokens", "Of them, found.", lambda status: status.prefix_hit_tokens),
)


def _engine_gauges(statuses: Statuses) -> Iterator[Metric]:
    for name, text, value_of in _GAUGES:
        gauge = GaugeMetricFamily(name, text, labels=LABELS)
        for student, status in statuses:
            gauge.add_metric((student, ENGINE), float(value_of(status)))
        yield gauge


def _engine_counters(statuses: Statuses) -> Iterator[Metric]:
    for name, text, count_of in _COUNTERS:
        counter = CounterMetricFamily(name, text, labels=LABELS)
        for student, status in statuses:
            counter.add_metric((student, ENGINE), count_of(status))
        yield counter


def _stage_counters(statuses: Statuses) -> Iterator[Metric]:
    for name, text, counts_of in _BY_STAGE:
        family = CounterMetricFamily(name, text, labels=("student", "stage"))
        for student, status in statuses:
            for stage, count in counts_of(status).items():
                family.add_metric((student, stage), count)
        yield family


def _loading(statuses: Statuses) -> Metric:
    text = "Share of a path's stages that are loaded."
    family = GaugeMetricFamily("fenhe_path_loaded", text, labels=("student", "path"))
    for student, status in statuses:
        for path in status.paths:
            family.add_metric((student, path.path), path.num_loaded_stages / path.num_stages)
    return family
