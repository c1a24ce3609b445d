"""The figures and verdicts of a task as lines of a table, for the terminal and for the page."""

from collections.abc import Iterator
from dataclasses import dataclass

from models.evaluation.table import Calibration, Evaluation, JudgedFigures, Point

COLUMNS = (
    ("own x", "perplexity_ratio_own"),
    ("human x", "perplexity_ratio_human"),
    ("plain x", "perplexity_ratio_plain"),
    ("information", "information_kept"),
    ("choice", "choice_kept"),
    ("accuracy", "accuracy_kept"),
    ("BLiMP", "blimp_kept"),
    ("rescored x", "rescored_nats_ratio"),
    ("repeats x", "repetition_ratio"),
    ("KL", "kl"),
    ("agree", "agreement"),
)
VERDICTS = (("fidelity ", "verdict_fidelity"), ("field    ", "verdict_field"), ("gate     ", "gate"))
TITLES = (
    *(title for title, _ in VERDICTS),
    "compute",
    "request",
    *(f"{title:>7}" for title, _ in COLUMNS),
)
"""Of the cells of a line."""


@dataclass(slots=True, kw_only=True, frozen=True)
class Cell:
    text: str
    interval: str = ""


@dataclass(slots=True, kw_only=True, frozen=True)
class FigureLine:
    path: str
    head: str
    precision: str
    cells: tuple[Cell, ...]
    is_calibration: bool = False


def tasks_with_figures(evaluation: Evaluation) -> list[str]:
    """Every task with figures, in the order of the points."""
    return list(dict.fromkeys(task for point in evaluation.points for task in point.figures))


def figure_lines(evaluation: Evaluation, task: str) -> Iterator[FigureLine]:
    """A line for every point, then the calibration."""
    for point in evaluation.points:
        if task in point.figures:
            yield FigureLine(
                path=point.path, head=point.head, precision=point.precision, cells=_point_cells(point, task)
            )
    calibration = evaluation.calibration
    if calibration is not None and task in calibration.figures:
        yield FigureLine(
            path=calibration.path,
            head="exact",
            precision=calibration.precision,
            cells=_calibration_cells(calibration, task),
            is_calibration=True,
        )


def figures_words(evaluation: Evaluation, task: str) -> str:
    """What the columns are, in words."""
    words = "x: over the full path with the exact head at the same precision; compute: share of an answer token"
    requests = [point.request_compute[task] for point in evaluation.points if task in point.request_compute]
    if requests:
        words += (
            f"; request: share of one of {requests[0].num_prompt_tokens} prompt and "
            f"{requests[0].num_answer_tokens} answer tokens"
        )
    if evaluation.calibration is not None:
        words += (
            f"; calibration: the full path at {evaluation.calibration.precision} over that at "
            f"{evaluation.calibration.reference_precision}"
        )
    return words


def mean_compute_words(share: float) -> str:
    """What `mean_default_compute` says, as a sentence."""
    return f"by default an answer token takes {share:.1%} of the full path's compute, mean over the tasks"


def _point_cells(point: Point, task: str) -> tuple[Cell, ...]:
    request = point.request_compute.get(task)
    share = "-" if request is None else f"{request.compute_share:.1%}"
    return _cells(point.figures[task], f"{point.compute_share:.1%}", share)


def _calibration_cells(calibration: Calibration, task: str) -> tuple[Cell, ...]:
    share = f"{calibration.compute_share:.1%}"
    return _cells(calibration.figures[task], share, share)


def _cells(figures: JudgedFigures, compute: str, request: str) -> tuple[Cell, ...]:
    verdicts = (Cell(text=getattr(figures, name)) for _, name in VERDICTS)
    return (*verdicts, Cell(text=compute), Cell(text=request), *(_figure_cell(figures, name) for _, name in COLUMNS))


def _figure_cell(figures: JudgedFigures, name: str) -> Cell:
    value: float | None = getattr(figures, name)
    if value is None:
        return Cell(text="-")
    low, high = figures.intervals[name]
    return Cell(text=_written(value), interval=f"{_written(low)} to {_written(high)} ({figures.rows[name]})")


def _written(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.2g}"
