"""One picture of a layer analysis and the cut chosen from it, as SVG text to put into a page or a file.

All three charts share one horizontal axis: layer i fills column i, and the state between two layers lies on the line
between their columns. So a cut is one vertical line through all charts.
"""

from collections.abc import Iterator, Sequence
from statistics import fmean
from xml.sax.saxutils import escape

from models.distill.cutting.boundaries import LayerAnalysis
from models.errors import ConfigError
from models.student.manifest import Module

LEFT, WIDTH, RIGHT = 64.0, 660.0, 32.0
BARS_TOP, BARS_HEIGHT = 86.0, 110.0
LINE_TOP, LINE_HEIGHT = 238.0, 110.0
MAP_TOP, MAP_HEIGHT = 390.0, 300.0
BOTTOM = 40.0
MAX_TICKS = 16
HEADROOM = 12.0
"""Space above the highest bar, for its figure."""
MIN_FIGURE_COLUMN = 16.0
"""Narrower columns have no room for a figure above the bar; pointing at the bar still shows it."""

BAR_COLOUR, LINE_COLOUR, HEAT_COLOUR = "#3b82f6", "#d97706", "#8b5cf6"
"""Each has a contrast of 3 : 1 or more with white and with near-black; text and lines take the page's text colour."""

_STYLE = (
    # `:root` is this element only where the picture is a file of its own; within a page, the page's colours apply.
    "svg:root{color:#1f2937;background:#fff}"
    "@media (prefers-color-scheme:dark){svg:root{color:#e5e7eb;background:#111827}}"
)


def boundary_svg(analysis: LayerAnalysis, modules: Sequence[Module]) -> str:
    """Bars of block influence, the line of attention distance, the heat map of angular distance, and the cuts.

    Raises: ConfigError when the modules are not cut from the analysed layers.
    """
    num_layers = sum(module.num_layers for module in modules)
    if num_layers != analysis.num_layers:
        raise ConfigError(f"the modules have {num_layers} layers, the analysis {analysis.num_layers}; analyse again")
    width, height = LEFT + WIDTH + RIGHT, MAP_TOP + MAP_HEIGHT + BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="11" fill="currentColor">',
        f"<title>Layers of the model and where it is cut: {escape(_in_words(modules))}</title>",
        f"<style>{_STYLE}</style>",
        *_bars(analysis),
        *_line(analysis),
        *_heat_map(analysis),
        *_ticks(analysis.num_layers),
        *_modules(analysis, modules),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _in_words(modules: Sequence[Module]) -> str:
    return ", ".join(f"{module.name} {module.num_layers}" for module in modules)


def _bars(analysis: LayerAnalysis) -> Iterator[str]:
    values = analysis.block_influence
    top = max(values)
    title = f"Block influence (1 - cosine of a layer's input and output), at most {top:.2f}"
    yield from _frame(title, BARS_TOP, BARS_HEIGHT, "")
    column = WIDTH / len(values)
    for layer, value in enumerate(values):
        height = (BARS_HEIGHT - HEADROOM) * _share(value, top)
        yield (
            f'<rect class="influence" x="{LEFT + column * (layer + 0.1):.2f}" width="{column * 0.8:.2f}" '
            f'y="{BARS_TOP + BARS_HEIGHT - height:.2f}" height="{height:.2f}" fill="{BAR_COLOUR}">'
            f"<title>layer {layer}: {value:.3f}</title></rect>"
        )
        if column >= MIN_FIGURE_COLUMN:
            figure = f"{value:.2f}".removeprefix("0")
            y = BARS_TOP + BARS_HEIGHT - height - 3
            yield _text(
                LEFT + column * (layer + 0.5), y, figure, anchor="middle", extra=' class="figure" font-size="9"'
            )


def _line(analysis: LayerAnalysis) -> Iterator[str]:
    values = analysis.attention_distance_tokens
    top = max(values)
    yield from _frame("Mean attention distance (tokens)", LINE_TOP, LINE_HEIGHT, f"{top:.0f}")
    column = WIDTH / len(values)
    points = [
        (LEFT + column * (layer + 0.5), LINE_TOP + LINE_HEIGHT * (1.0 - _share(value, top)))
        for layer, value in enumerate(values)
    ]
    corners = " ".join(f"{x:.2f},{y:.2f}" for x, y in points)
    yield f'<polyline class="distance" points="{corners}" fill="none" stroke="{LINE_COLOUR}" stroke-width="2"/>'
    for layer, ((x, y), value) in enumerate(zip(points, values, strict=True)):
        yield (
            f'<circle class="distance" cx="{x:.2f}" cy="{y:.2f}" r="3" fill="{LINE_COLOUR}">'
            f"<title>layer {layer}: {value:.1f} tokens</title></circle>"
        )


def _heat_map(analysis: LayerAnalysis) -> Iterator[str]:
    rows = analysis.angular_distance
    top = max(max(row) for row in rows)
    title = f"Angular distance between states (deepest colour: {top:.2f}; 0 is the embedding)"
    yield from _frame(title, MAP_TOP, MAP_HEIGHT, "0", bottom=str(analysis.num_layers))
    column, row_height = WIDTH / analysis.num_layers, MAP_HEIGHT / len(rows)
    # One colour for the whole group and no titles: a deep model has thousands of cells.
    yield f'<g class="angles" fill="{HEAT_COLOUR}" shape-rendering="crispEdges">'
    for state, row in enumerate(rows):
        y = MAP_TOP + row_height * state
        for other, value in enumerate(row):
            # The first and last state lie on the edges of the chart, so half of each of their cells is cut off.
            left, right = max(0.0, other - 0.5), min(float(analysis.num_layers), other + 0.5)
            yield (
                f'<rect x="{LEFT + column * left:.1f}" y="{y:.1f}" width="{column * (right - left):.1f}" '
                f'height="{row_height:.1f}" fill-opacity="{_share(value, top):.2f}"/>'
            )
    yield "</g>"


def _ticks(num_layers: int) -> Iterator[str]:
    """Layer numbers under the two charts of layers, state numbers under the map."""
    step = -(-num_layers // MAX_TICKS)
    column = WIDTH / num_layers
    for layer in range(0, num_layers, step):
        for bottom in (BARS_TOP + BARS_HEIGHT, LINE_TOP + LINE_HEIGHT):
            yield _text(LEFT + column * (layer + 0.5), bottom + 14, str(layer), anchor="middle")
    for state in range(0, num_layers + 1, step):
        yield _text(LEFT + column * state, MAP_TOP + MAP_HEIGHT + 14, str(state), anchor="middle")


def _modules(analysis: LayerAnalysis, modules: Sequence[Module]) -> Iterator[str]:
    """Each module's name and mean figures above its layers, and a line at every cut."""
    column = WIDTH / analysis.num_layers
    for module in modules:
        layers = slice(module.first_layer, module.first_layer + module.num_layers)
        middle = LEFT + column * (module.first_layer + module.num_layers / 2)
        yield _text(middle, 16, escape(module.name), anchor="middle", extra=' class="module" font-weight="600"')
        figures = (
            f"{module.num_layers} layers",
            f"influence {fmean(analysis.block_influence[layers]):.2f}",
            f"reach {fmean(analysis.attention_distance_tokens[layers]):.0f} tokens",
        )
        for row, words in enumerate(figures):
            yield _text(middle, 30 + 13 * row, words, anchor="middle")
        if module.first_layer:
            x = LEFT + column * module.first_layer
            yield (
                f'<line class="cut" x1="{x:.2f}" x2="{x:.2f}" y1="8" y2="{MAP_TOP + MAP_HEIGHT:g}" '
                f'stroke="currentColor" stroke-width="1.5" stroke-dasharray="5 3">'
                f"<title>cut before layer {module.first_layer}</title></line>"
            )


def _frame(title: str, top: float, height: float, highest: str, bottom: str = "0") -> Iterator[str]:
    """A chart's title, box and the two ends of its vertical axis."""
    yield _text(LEFT, top - 7, title)
    yield (
        f'<rect x="{LEFT:g}" y="{top:g}" width="{WIDTH:g}" height="{height:g}" fill="none" stroke="currentColor" '
        f'stroke-opacity="0.35"/>'
    )
    if highest:
        yield _text(LEFT - 6, top + 9, highest, anchor="end")
    yield _text(LEFT - 6, top + height, bottom, anchor="end")


def _text(x: float, y: float, words: str, *, anchor: str = "start", extra: str = "") -> str:
    """A text element; `words` are escaped already."""
    return f'<text x="{x:.2f}" y="{y:.2f}" text-anchor="{anchor}"{extra}>{words}</text>'


def _share(value: float, top: float) -> float:
    """`value` as a share of `top`, the largest; 0 where that is 0."""
    return value / top if top > 0.0 else 0.0
