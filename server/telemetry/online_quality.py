"""What paths keep on live traffic, and what scoring costs, as Prometheus families (docs/online-quality.md).

Figures are shares of the full path's quality, over decayed windows, with 95 % intervals; gaps are in nats per token.
Seconds are the engine's own: of every step, and of them what scoring took.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from router.quality.live import PathUse
from router.quality.window import Figure

_USE = ("student", "task", "path", "head")


@dataclass(slots=True, kw_only=True, frozen=True)
class FigureSeries:
    """A path's figure, None where no score weighs anything; its task's floor, and whether default routing may take the
    path."""

    use: PathUse
    figure: Figure | None
    floor: float
    is_open: bool


@dataclass(slots=True, kw_only=True, frozen=True)
class Snapshot:
    """`scored` counts live and shadow answers by path; `seconds` are by student: busy, and of them scoring; `held` says
    of every student whether nothing is scored there now."""

    figures: Sequence[FigureSeries] = ()
    scored: Mapping[tuple[PathUse, bool], int]
    left_out: Mapping[str, int]
    changes: Mapping[str, int]
    seconds: Mapping[str, tuple[float, float]]
    held: Mapping[str, bool]
    num_waiting: int


class OnlineQualityCollector(Collector):
    def __init__(self, look: Callable[[], Snapshot | None]) -> None:
        """`look` gives None where online quality is off."""
        self._look = look

    def collect(self) -> Iterable[Metric]:
        snapshot = self._look()
        if snapshot is not None:
            yield from _figures(snapshot.figures)
            yield from _counts(snapshot)

    def describe(self) -> Iterable[Metric]:
        return []


def _figures(rows: Sequence[FigureSeries]) -> Iterator[Metric]:
    families: tuple[tuple[str, str, Callable[[Figure], float]], ...] = (
        ("kept", "Share of the full path's quality that a path keeps, 1 at best.", lambda one: one.kept),
        ("kept_low", "Lower end of the 95 % interval of that share.", lambda one: one.low),
        ("kept_high", "Upper end of the 95 % interval of that share.", lambda one: one.high),
        ("gap_nats", "Nats per token that answers miss of the full path's own.", lambda one: one.gap),
        ("agreement", "Share of tokens that are the full path's likeliest.", lambda one: one.agreement),
    )
    for name, text, value in families:
        yield _gauge(name, text, [(row.use, value(row.figure)) for row in rows if row.figure is not None])
    text = "Effective number of scored answers behind the figures."
    samples = [(row.use, 0.0 if row.figure is None else row.figure.effective_samples) for row in rows]
    yield _gauge("samples", text, samples)
    text = "Share of the full path's quality that the task's paths must keep."
    yield _gauge("floor", text, [(row.use, row.floor) for row in rows])
    text = "1 if default routing may take the path for the task."
    yield _gauge("path_open", text, [(row.use, float(row.is_open)) for row in rows])


def _gauge(name: str, text: str, values: Iterable[tuple[PathUse, float]]) -> Metric:
    family = GaugeMetricFamily(f"fenhe_online_{name}", text, labels=_USE)
    for use, value in values:
        family.add_metric(tuple(use), value)
    return family


def _counts(snapshot: Snapshot) -> Iterator[Metric]:
    scored = CounterMetricFamily("fenhe_online_scored", "Answers that the full path scored.", labels=(*_USE, "kind"))
    for (use, is_shadow), count in snapshot.scored.items():
        scored.add_metric((*use, "shadow" if is_shadow else "live"), count)
    yield scored
    left_out = CounterMetricFamily("fenhe_online_left_out", "Chosen answers that were not scored.", labels=("reason",))
    for reason, count in snapshot.left_out.items():
        left_out.add_metric((reason,), count)
    yield left_out
    changes = CounterMetricFamily("fenhe_online_changes", "Changes of default routing.", labels=("action",))
    for action, count in snapshot.changes.items():
        changes.add_metric((action,), count)
    yield changes
    busy = CounterMetricFamily("fenhe_engine_busy_seconds", "Seconds of all steps of the engine.", labels=("student",))
    scoring = CounterMetricFamily("fenhe_online_seconds", "Of them, seconds of scoring.", labels=("student",))
    for student, (busy_s, scoring_s) in snapshot.seconds.items():
        busy.add_metric((student,), busy_s)
        scoring.add_metric((student,), scoring_s)
    yield busy
    yield scoring
    held = GaugeMetricFamily("fenhe_online_held", "1 while nothing is scored in a student.", labels=("student",))
    for student, is_held in snapshot.held.items():
        held.add_metric((student,), float(is_held))
    yield held
    yield GaugeMetricFamily("fenhe_online_queue", "Answers that wait to be scored.", value=snapshot.num_waiting)
