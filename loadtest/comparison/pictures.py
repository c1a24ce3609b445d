"""The pictures of a comparison, as SVG that a page holds itself."""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from loadtest.comparison.measuring import Point
from loadtest.comparison.stages import Findings

Servers = Mapping[str, Findings]
TASKS = ("math", "legal", "fact", "creative", "general")


def pictures(servers: Servers) -> Iterator[tuple[str, str]]:
    """Title and SVG of each that there is something to show in."""
    there = {name: one for name, one in servers.items() if one.absent is None}
    for title, draw in DRAWINGS.items():
        figure = _new_figure()
        axes = figure.add_subplot()
        if draw(axes, there):
            yield title, _svg(figure)


def write_pictures(folder: Path, servers: Servers) -> None:
    """Named after their titles."""
    folder.mkdir(parents=True, exist_ok=True)
    for title, svg in pictures(servers):
        name = "-".join("".join(letter if letter.isalnum() else " " for letter in title.lower()).split())
        (folder / f"{name}.svg").write_text(svg, encoding="utf-8")


def _throughput(axes: Any, servers: Servers) -> bool:
    for name, one in servers.items():
        _line(axes, name, [(point.concurrency, point.figures.get("output_throughput")) for point in one.ladder])
    axes.set(xlabel="users at once", ylabel="answer tokens/s", xscale="log")
    return _has_lines(axes)


def _pareto(axes: Any, servers: Servers) -> bool:
    for name, one in servers.items():
        pairs = [(p.figures.get("user_tokens_per_s"), p.figures.get("output_throughput")) for p in one.ladder]
        _line(axes, name, pairs)
    axes.set(xlabel="tokens/s of one user (1 / median TPOT)", ylabel="tokens/s of all users", xscale="log")
    return _has_lines(axes)


def _goodput(axes: Any, servers: Servers) -> bool:
    for name, one in servers.items():
        _line(axes, name, [(point.rate, point.figures.get("request_goodput")) for point in one.sweep if point.counts])
    axes.set(xlabel="offered requests/s", ylabel="good requests/s (within the SLO)")
    return _has_lines(axes)


def _cdf(quantity: str, label: str) -> Callable[[Any, Servers], bool]:
    """At the highest concurrency that every server was tried with."""

    def draw(axes: Any, servers: Servers) -> bool:
        tried = [{point.concurrency for point in one.ladder if point.counts} for one in servers.values() if one.ladder]
        common = max((load for load in set.intersection(*tried) if load is not None), default=None) if tried else None
        for name, one in servers.items():
            points = [point for point in one.ladder if point.concurrency == common and quantity in point.quantiles]
            if points:
                axes.plot(points[-1].quantiles[quantity], [share / 100 for share in range(101)], label=name)
        axes.set(xlabel=f"{label}, ms, {common} users at once", ylabel="share of requests", xscale="log")
        return _has_lines(axes)

    return draw


def _by_task(axes: Any, servers: Servers) -> bool:
    width = 0.8 / max(len(servers), 1)
    for number, (name, one) in enumerate(servers.items()):
        point = _middle(one.ladder)
        if point is None:
            continue
        heights = [point.by_task.get(task, {}).get("median_e2el_ms", 0.0) for task in TASKS]
        axes.bar([place + number * width for place in range(len(TASKS))], heights, width, label=name)
    axes.set_xticks([place + 0.4 for place in range(len(TASKS))], TASKS)
    axes.set(ylabel="median end to end, ms")
    return bool(axes.patches)


def _ablation(axes: Any, servers: Servers) -> bool:
    arms = {name: one.ablation for name, one in servers.items() if one.ablation}
    heights = [
        sum(point.figures.get("output_throughput", 0.0) for point in points) / len(points) for points in arms.values()
    ]
    axes.bar(list(arms), heights)
    axes.tick_params(axis="x", rotation=20)
    axes.set(ylabel="answer tokens/s")
    return bool(arms)


DRAWINGS: Mapping[str, Callable[[Any, Servers], bool]] = {
    "Throughput against concurrency": _throughput,
    "Goodput against the offered rate": _goodput,
    "A user's speed against that of all": _pareto,
    "Time to first token": _cdf("ttft_ms", "TTFT"),
    "End to end": _cdf("e2el_ms", "E2EL"),
    "By task": _by_task,
    "Ablation: each part off in turn": _ablation,
}


def _middle(points: Sequence[Point]) -> Point | None:
    counting = sorted((point for point in points if point.counts), key=lambda point: point.concurrency or 0)
    return counting[len(counting) // 2] if counting else None


def _line(axes: Any, name: str, pairs: Sequence[tuple[float | None, float | None]]) -> None:
    points = sorted((x, y) for x, y in pairs if x is not None and y is not None)
    if points:
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)


def _has_lines(axes: Any) -> bool:
    return bool(axes.lines)


def _new_figure() -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(7.5, 4.2), layout="constrained")


def _svg(figure: Any) -> str:
    for axes in figure.axes:
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize="small")
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
