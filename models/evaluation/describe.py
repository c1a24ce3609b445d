"""An evaluation as lines of text for a terminal."""

from collections.abc import Iterator

from models.evaluation.figure_lines import (
    TITLES,
    figure_lines,
    figures_words,
    mean_compute_words,
    tasks_with_figures,
)
from models.evaluation.front import RULES, pick
from models.evaluation.table import INFORMATION, LIKELIHOOD, Evaluation, Measure, Point

MIB = 1 << 20


def describe(evaluation: Evaluation) -> str:
    """The points, what each keeps of every task, the full path's measures, and the pick of every scenario."""
    return "\n".join(_lines(evaluation))


def tasks_of(evaluation: Evaluation) -> list[str]:
    """Every task with rows, in the order of the points."""
    return list(dict.fromkeys(task for point in evaluation.points for task in point.tasks))


def reference_words(evaluation: Evaluation) -> str:
    """What each kind of figure is compared with, in words."""
    return (
        f"agreement, KL and perplexity ratio: against the path {evaluation.full_path} at "
        f"{evaluation.reference_precision}; retention: against it at the same precision"
    )


def _lines(evaluation: Evaluation) -> Iterator[str]:
    rows = ", ".join(f"{count} of {dataset}" for dataset, count in evaluation.num_rows.items())
    yield f"{evaluation.student}: {rows} ({evaluation.num_skipped} rows did not fit)"
    yield f"  {reference_words(evaluation)}"
    yield f"  {evaluation.machine}"
    tasks = tasks_of(evaluation)
    yield ""
    yield (
        f"{'path':<14} {'head':<6} {'precision':<12} {'layers':>6} {'compute':>8} {'agree':>7} {'KL':>8} {'ppl x':>8} "
        f"{'MiB':>6} {'tok/s 1':>8} {'tok/s 32':>9}  {'  '.join(f'{task:>22}' for task in tasks)}"
    )
    for point in evaluation.points:
        yield _point(point, tasks)
    yield from ("", f"the full path's own measures at {evaluation.reference_precision}")
    for point in evaluation.points:
        if is_reference(evaluation, point):
            yield from (_measure_words(measure) for measure in point.measures)
            if point.pairs_accuracy is not None:
                yield f"  BLiMP: {point.pairs_accuracy:.3f} of the pairs right"
    yield from ("", "what is kept of a task")
    yield from (f"  {task:<12} {words}" for task, words in measured_words(evaluation))
    for task in tasks_with_figures(evaluation):
        yield from _figures(evaluation, task)
    if evaluation.mean_default_compute is not None:
        yield from ("", mean_compute_words(evaluation.mean_default_compute))
    yield ""
    for scenario in RULES:
        choice = pick(evaluation.points, scenario)
        yield f"{scenario:<12} {choice.point.name} at {choice.point.precision}: {choice.reason}"


def _figures(evaluation: Evaluation, task: str) -> Iterator[str]:
    yield from ("", f"{task}: {figures_words(evaluation, task)}")
    yield "  ".join((f"{'path':<14} {'head':<6} {'precision':<12}", *TITLES))
    for line in figure_lines(evaluation, task):
        place = f"{line.path:<14} {line.head:<6} {line.precision:<12}"
        cells = (f"{cell.text:>{len(title)}}" for title, cell in zip(TITLES, line.cells, strict=True))
        yield "  ".join((place, *cells)) + ("  (calibration)" if line.is_calibration else "")


def _point(point: Point, tasks: list[str]) -> str:
    kept = []
    for task in tasks:
        one = point.retention.get(task)
        kept.append("unknown" if one is None else f"{one.score:.3f} [{one.low:.3f}, {one.high:.3f}]")
    return (
        f"{point.path:<14} {point.head:<6} {point.precision:<12} {point.layers:>6} {point.compute_share:>8.1%} "
        f"{point.agreement:>7.1%} {point.kl:>8.4f} {short(point.perplexity_ratio):>8} {point.bytes / MIB:>6.1f} "
        f"{point.decode_tokens_per_s[1]:>8.0f} {point.decode_tokens_per_s[32]:>9.0f}  "
        f"{'  '.join(f'{text:>22}' for text in kept)}"
    )


def _measure_words(measure: Measure) -> str:
    verdict = "counts" if measure.is_counted else "does not count"
    return (
        f"  {measure.task:<9} {measure.name:<20} {full_words(measure)} ({measure.n} rows); {verdict}: {measure.reason}"
    )


def is_reference(evaluation: Evaluation, point: Point) -> bool:
    """Whether all others are compared with this one."""
    place = (evaluation.full_path, "exact", evaluation.reference_precision)
    return (point.path, point.head, point.precision) == place


def full_words(measure: Measure) -> str:
    """The full path's own figure of a measure."""
    if measure.kind == LIKELIHOOD:
        return f"{measure.full_value:.4f} nats per token"
    between = f"[{measure.full_low:.3f}, {measure.full_high:.3f}]"
    if measure.kind == INFORMATION:
        return f"{measure.full_value:.4f} nats per token come from the question {between}"
    return f"{measure.full_value:.3f} right {between}, chance {measure.chance:.3f}"


def measured_words(evaluation: Evaluation) -> Iterator[tuple[str, str]]:
    """Every task, and which measures of the full path at the reference precision count towards what is kept of it."""
    for point in evaluation.points:
        if is_reference(evaluation, point):
            for task in point.tasks:
                kept = point.retention.get(task)
                yield task, "unknown: no measure of it counts" if kept is None else f"by {kept.reason}"


def short(value: float) -> str:
    """Three significant digits, in powers of ten where it is large."""
    return f"{value:.3f}" if value < 100 else f"{value:.2g}"
