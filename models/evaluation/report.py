"""The page that `fenhe eval --html` writes: one file that needs no script and no other file, in light and dark."""

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from models.errors import ConfigError
from models.evaluation.describe import MIB, measured_words, reference_words, short, tasks_of
from models.evaluation.figure_lines import (
    TITLES,
    figure_lines,
    figures_words,
    mean_compute_words,
    tasks_with_figures,
)
from models.evaluation.front import RULES, pick, size_cost
from models.evaluation.plots import NUM_COLOURS, Spot, curves_plot, front_plot
from models.evaluation.table import Evaluation, Measure, Point, TaskRetention

LIGHT = ("#2563eb", "#d97706", "#059669", "#db2777", "#7c3aed", "#475569")
DARK = ("#7aa7ff", "#f5b544", "#3ddc97", "#ff7ab8", "#b79bff", "#a8b3c4")
STYLE = """
:root{color-scheme:light dark;--page:#fbfaf8;--card:#fff;--ink:#1c1b1a;--soft:#6b6863;--line:#e5e1da;--good:#05966922}
body{font:15px/1.55 system-ui,sans-serif;color:var(--ink);background:var(--page);margin:0;padding:3rem 1.25rem}
main{max-width:72rem;margin:auto}h1{font-size:1.9rem;letter-spacing:-.02em;margin:0 0 .3rem}
h2{font-size:1.05rem;margin:0 0 .8rem}.soft,p.legend{color:var(--soft)}p{margin:.3rem 0}
section{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:1.3rem 1.5rem;margin-top:1.4rem}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(22rem,1fr));gap:1.4rem}.two section{min-width:0}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;width:100%}
th,td{padding:.42rem .7rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th{font-weight:600;color:var(--soft);font-size:.85em}th:first-child,td:first-child,td.left,th.left{text-align:left}
tr.full td{background:var(--good)}small{color:var(--soft)}svg{width:100%;height:auto;display:block}
svg text{font:12px system-ui,sans-serif;fill:var(--soft)}svg .name{fill:var(--ink);font-weight:600}
svg .grid{stroke:var(--line);fill:none}svg .front{stroke:var(--soft);stroke-dasharray:5 4;fill:none;stroke-width:1.5}
svg .curve{fill:none;stroke-width:1.8}.legend span{margin-right:1.1rem}
.legend i{display:inline-block;width:.7em;height:.7em;border-radius:50%;margin-right:.4em}
"""
DARK_PALETTE = ":root{--page:#141416;--card:#1d1d20;--ink:#ecebe8;--soft:#a19e98;--line:#323237;--good:#3ddc9722}"


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """A line of a training log; other keys are ignored. `loss` is the loss of `exit`, or the losses by exit."""

    step: int
    loss: float | dict[str, float]
    exit: str = "loss"


@dataclass(slots=True, kw_only=True, frozen=True)
class Pictures:
    """What training adds to the page: loss curves by name, and a picture of the layers as SVG."""

    curves: dict[str, list[Spot]] = field(default_factory=dict)
    layers: str | None = None

    @classmethod
    def read(cls, *, steps: Path | None = None, layers: Path | None = None) -> "Pictures":
        """Raises: ConfigError that names the file."""
        curves = {} if steps is None else read_steps(steps)
        picture = None if layers is None else _read(layers)
        if picture is not None and "<svg" not in picture:
            raise ConfigError(f"{layers} is not an SVG picture; name the one that distillation wrote")
        return cls(curves=curves, layers=picture)


def read_steps(file: Path) -> dict[str, list[Spot]]:
    """Loss over steps, a curve for every exit that the log names. Raises: ConfigError that names file and line."""
    curves: dict[str, list[Spot]] = {}
    for number, line in enumerate(_read(file).splitlines(), 1):
        if line.strip():
            try:
                step = msgspec.json.decode(line, type=Step)
            except msgspec.DecodeError as error:
                raise ConfigError(f"{file}:{number}: {error}; a line is {{step, loss}}, perhaps with exit") from error
            losses = step.loss if isinstance(step.loss, dict) else {step.exit: step.loss}
            for exit, loss in losses.items():
                curves.setdefault(exit, []).append((float(step.step), loss))
    return curves


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error


def write_report(file: Path, evaluation: Evaluation, pictures: Pictures) -> None:
    """Raises: OSError where the file cannot be written."""
    file.write_text(page_of(evaluation, pictures), encoding="utf-8")


def page_of(evaluation: Evaluation, pictures: Pictures) -> str:
    """The whole page as text."""
    name = html.escape(evaluation.student)
    rows = ", ".join(f"{count} of {dataset}" for dataset, count in evaluation.num_rows.items())
    parts = [
        f"<h1>{name}: what every path keeps</h1>",
        f"<p class=soft>{html.escape(rows)} · {html.escape(evaluation.machine)}</p>",
        f"<p class=soft>{html.escape(reference_words(evaluation))}.</p>",
        _mean_compute(evaluation),
        _fronts(evaluation.points),
        _section("Paths and precisions", _points_table(evaluation)),
        *(
            _section(f"{task}: figures and verdicts", _figures_table(evaluation, task))
            for task in tasks_with_figures(evaluation)
        ),
        _section("What is kept of a task", _kept_by(evaluation)),
        _section("Picks", _picks(evaluation)),
        _section("Measures", _measures_table(evaluation)),
    ]
    if pictures.curves:
        parts.append(_section("Training", curves_plot(pictures.curves)))
    if pictures.layers is not None:
        parts.append(_section("Layers", pictures.layers[pictures.layers.index("<svg") :]))
    head = (
        "<meta charset=utf-8><meta name=viewport content='width=device-width,initial-scale=1'>"
        f"<title>{name}: evaluation</title>"
    )
    body = "".join(parts)
    return f"<!doctype html><html lang=en><head>{head}<style>{_style()}</style></head><main>{body}</main></html>\n"


def _style() -> str:
    dark = DARK_PALETTE + _colours(DARK)
    return f"{STYLE}{_colours(LIGHT)}@media (prefers-color-scheme:dark){{{dark}}}"


def _colours(colours: Sequence[str]) -> str:
    return "".join(
        f".c{index}{{fill:{colours[index]}}}.s{index}{{stroke:{colours[index]}}}.b{index}{{background:{colours[index]}}}"
        for index in range(NUM_COLOURS)
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>{body}</section>"


def _fronts(points: Sequence[Point]) -> str:
    compute = front_plot(points, lambda point: point.compute_share, "share of the full path's compute", "{:.0%}".format)
    sizes = front_plot(points, size_cost, "weights", lambda size: f"{size / MIB:.0f} MiB")
    return (
        f"<div class=two>{_section('Quality against compute', compute)}{_section('Quality against size', sizes)}</div>"
    )


def _points_table(evaluation: Evaluation) -> str:
    tasks = tasks_of(evaluation)
    heads = [
        "path",
        "head",
        "precision",
        "layers",
        "compute",
        "agreement",
        "KL",
        "perplexity ×",
        "MiB",
        "tok/s, 1",
        "tok/s, 32",
    ]
    rows = []
    for point in evaluation.points:
        cells = [
            html.escape(point.path),
            point.head,
            html.escape(point.precision),
            str(point.layers),
            f"{point.compute_share:.1%}",
            f"{point.agreement:.1%}",
            f"{point.kl:.4f}",
            short(point.perplexity_ratio),
            f"{point.bytes / MIB:.1f}",
            *(f"{point.decode_tokens_per_s[num_rows]:,.0f}" for num_rows in (1, 32)),
            *(_kept(point.retention.get(task)) for task in tasks),
        ]
        rows.append((point.path == evaluation.full_path, cells))
    return _table([*heads, *(f"{task} kept" for task in tasks)], rows)


def _kept(kept: TaskRetention | None) -> str:
    if kept is None:
        return "<small>unknown</small>"
    return f"{kept.score:.1%} <small>{kept.low:.1%} to {kept.high:.1%}</small>"


def _mean_compute(evaluation: Evaluation) -> str:
    if evaluation.mean_default_compute is None:
        return ""
    return f"<p>{html.escape(mean_compute_words(evaluation.mean_default_compute))}.</p>"


def _figures_table(evaluation: Evaluation, task: str) -> str:
    rows = []
    for line in figure_lines(evaluation, task):
        path = html.escape(line.path) + (" <small>calibration</small>" if line.is_calibration else "")
        cells = [path, line.head, html.escape(line.precision)]
        cells += [f"{html.escape(cell.text)} <small>{html.escape(cell.interval)}</small>" for cell in line.cells]
        rows.append((line.path == evaluation.full_path and not line.is_calibration, cells))
    table = _table(["path", "head", "precision", *TITLES], rows)
    return f"<p class=soft>{html.escape(figures_words(evaluation, task))}</p>{table}"


def _picks(evaluation: Evaluation) -> str:
    rows = []
    for scenario in RULES:
        choice = pick(evaluation.points, scenario)
        where = f"<b>{html.escape(choice.point.name)}</b> at {html.escape(choice.point.precision)}"
        rows.append(f"<p><b>{scenario}</b>: {where} <small>{html.escape(choice.reason)}</small></p>")
    return "".join(rows)


def _kept_by(evaluation: Evaluation) -> str:
    return "".join(
        f"<p><b>{html.escape(task)}</b> <small>{html.escape(words)}</small></p>"
        for task, words in measured_words(evaluation)
    )


def _measures_table(evaluation: Evaluation) -> str:
    heads = ["measure", "path", "precision", "value", "full path", "ratio", "95 % interval", "chance", "rows", "counts"]
    rows = []
    for point in evaluation.points:
        for measure in point.measures:
            cells = [html.escape(measure.name), html.escape(point.name), html.escape(point.precision)]
            cells += [f"{measure.value:.4f}", _full_value(measure), f"{measure.ratio:.4f}"]
            cells += [f"{measure.low:.4f} to {measure.high:.4f}"]
            cells += ["" if measure.chance is None else f"{measure.chance:.3f}", str(measure.n)]
            cells += [f"{'yes' if measure.is_counted else 'no'} <small>{html.escape(measure.reason)}</small>"]
            rows.append((point.path == evaluation.full_path, cells))
    return _table(heads, rows)


def _full_value(measure: Measure) -> str:
    if measure.full_low is None or measure.full_high is None:
        return f"{measure.full_value:.4f}"
    return f"{measure.full_value:.4f} <small>{measure.full_low:.4f} to {measure.full_high:.4f}</small>"


def _table(heads: Sequence[str], rows: Iterable[tuple[bool, Sequence[str]]]) -> str:
    """`rows` are (whether it is the full path's, cells); cells are HTML already."""
    top = "".join(f"<th>{html.escape(head)}</th>" for head in heads)
    body = "".join(
        f"<tr{' class=full' if is_full else ''}>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
        for is_full, cells in rows
    )
    return f"<div class=scroll><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
