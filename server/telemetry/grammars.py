"""Prometheus families of the grammars that are compiled for structured output, per student."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector


@dataclass(slots=True, kw_only=True)
class GrammarCounts:
    """`outcomes` counts requests for a grammar: `kept`, `compiled`, `refused` for what the schema is or costs,
    `turned_away` for the line. `seconds` is the time of processes and threads, `num_bytes` what is held now."""

    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    num_bytes: int = 0


class GrammarCollector(Collector):
    def __init__(self, read: Callable[[], Sequence[tuple[str, GrammarCounts]]]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        outcomes = CounterMetricFamily(
            "fenhe_grammars", "Grammars that requests asked for.", labels=("student", "outcome")
        )
        seconds = CounterMetricFamily("fenhe_grammar_compile_seconds", "Time of compiling.", labels=("student",))
        held = GaugeMetricFamily("fenhe_grammar_bytes", "Memory of grammars kept or in use.", labels=("student",))
        for name, counts in self._read():
            for outcome, count in sorted(counts.outcomes.items()):
                outcomes.add_metric((name, outcome), count)
            seconds.add_metric((name,), counts.seconds)
            held.add_metric((name,), counts.num_bytes)
        yield from (outcomes, seconds, held)

    def describe(self) -> Iterable[Metric]:
        return []
