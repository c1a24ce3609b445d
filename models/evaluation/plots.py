"""The Pareto front and the loss curves as SVG. Colours are CSS classes of the page, so they follow light and dark."""

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from models.evaluation.front import Cost, front
from models.evaluation.table import Point

WIDTH, HEIGHT = 640, 380
LEFT, RIGHT, TOP, BOTTOM = 58, 24, 20, 46
NUM_COLOURS = 6
MAX_CURVE_POINTS = 400

Spot = tuple[float, float]


@dataclass(slots=True, kw_only=True, frozen=True)
class Axis:
    low: float
    high: float
    title: str
    label: Callable[[float], str] = "{:g}".format

    def share(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """About four to eight round values within the axis."""
        step = 10 ** math.floor(math.log10((self.high - self.low) / 3))
        step *= next((factor for factor in (1, 2, 5) if (self.high - self.low) / (step * factor) <= 8), 10)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]


def axis_over(values: Sequence[float], title: str, label: Callable[[float], str] = "{:g}".format) -> Axis:
    """An axis that covers the values with a margin at both ends."""
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return Axis(low=low - margin, high=high + margin, title=title, label=label)


def front_plot(points: Sequence[Point], cost: Cost, title: str, label: Callable[[float], str]) -> str:
    """A spot per path and precision, coloured by precision, and the Pareto front as a line with its paths' names."""
    across = axis_over([cost(point) for point in points], title, label)
    up = axis_over([point.mean_kept for point in points], "kept of the reference, mean over tasks", "{:.0%}".format)
    colours = {name: index % NUM_COLOURS for index, name in enumerate(dict.fromkeys(p.precision for p in points))}
    best = front(points, cost)
    line = [_spot(across, up, cost(point), point.mean_kept) for point in best]
    marks = [_frame(across, up), _polyline(line, "front")]
    for point in points:
        x, y = _spot(across, up, cost(point), point.mean_kept)
        name = html.escape(f"{point.name} at {point.precision}")
        marks.append(
            f'<circle class="c{colours[point.precision]}" cx="{x:.1f}" cy="{y:.1f}" r="5.5">'
            f"<title>{name}: {label(cost(point))}, {point.mean_kept:.1%}</title></circle>"
        )
    marks += [_name(point.path, *spot) for point, spot in zip(best, line, strict=True)]
    return _svg("".join(marks), title) + _legend(colours)


def _name(text: str, x: float, y: float) -> str:
    """A label below a spot: to its left near the right end of the frame, else to its right."""
    anchor, side = ("end", -10) if x > WIDTH * 0.7 else ("start", 10)
    return f'<text class="name" x="{x + side:.1f}" y="{y + 15:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def curves_plot(curves: Mapping[str, Sequence[Spot]]) -> str:
    """A line per curve over training steps."""
    spots = [spot for curve in curves.values() for spot in curve]
    across = axis_over([x for x, _ in spots], "step")
    up = axis_over([y for _, y in spots], "loss")
    colours = {name: index % NUM_COLOURS for index, name in enumerate(curves)}
    lines = [
        _polyline([_spot(across, up, x, y) for x, y in _thinned(curve)], f"curve s{colours[name]}")
        for name, curve in curves.items()
    ]
    return _svg(_frame(across, up) + "".join(lines), "Loss curves") + _legend(colours)


def _thinned(curve: Sequence[Spot]) -> Sequence[Spot]:
    return curve[:: max(1, len(curve) // MAX_CURVE_POINTS)]


def _spot(across: Axis, up: Axis, x: float, y: float) -> Spot:
    return (
        LEFT + across.share(x) * (WIDTH - LEFT - RIGHT),
        HEIGHT - BOTTOM - up.share(y) * (HEIGHT - TOP - BOTTOM),
    )


def _frame(across: Axis, up: Axis) -> str:
    parts = []
    for value in across.ticks():
        x, _ = _spot(across, up, value, up.low)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{across.label(value)}</text>')
        parts.append(f'<path class="grid" d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
    for value in up.ticks():
        _, y = _spot(across, up, across.low, value)
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{up.label(value)}</text>')
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{html.escape(across.title)}</text>')
    parts.append(f'<text x="{LEFT}" y="{TOP - 7}">{html.escape(up.title)}</text>')
    return "".join(parts)


def _polyline(spots: Sequence[Spot], kind: str) -> str:
    return f'<polyline class="{kind}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in spots)}"/>'


def _svg(body: str, title: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">{body}</svg>'


def _legend(colours: Mapping[str, int]) -> str:
    items = (f'<span><i class="b{index}"></i>{html.escape(name)}</span>' for name, index in colours.items())
    return f'<p class="legend">{"".join(items)}</p>'
