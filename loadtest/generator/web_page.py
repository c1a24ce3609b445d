"""Our columns in locust's own web page, as a tab, and a page of charts beside it."""

import html
import json
from collections.abc import Callable, Sequence

from flask import Blueprint, Response, redirect, render_template, request
from locust.web import WebUI
from werkzeug.wrappers import Response as AnyResponse

from loadtest.generator.collector import Collector
from loadtest.generator.results import COLUMNS, cells
from loadtest.measure.figures import figures_of, is_good, ttft_s
from loadtest.measure.record import Record

KEY = "chats"
BUCKET_S = 2.0
STYLE = "body{font:15px system-ui;margin:2em auto;max-width:60em}svg{width:100%;height:9em;background:#8881}"
Point = tuple[float, float]


def add_pages(web_ui: WebUI, collector: Callable[[], Collector | None]) -> None:
    """`/load` is locust's page with the tab "Chats", `/charts` has the pictures."""
    assert web_ui.app is not None
    pages = Blueprint("fenhe", __name__)
    headings = [{"key": "name", "title": "Task"}]
    headings += [{"key": f"column{number}", "title": title} for number, (title, _, _) in enumerate(COLUMNS)]
    extension = {
        "extended_tabs": [{"title": "Chats", "key": KEY}],
        "extended_tables": [{"key": KEY, "structure": headings}],
    }

    @web_ui.app.after_request
    def add_rows(response: Response) -> Response:
        if request.path.endswith("/stats/requests"):
            body = json.loads(response.get_data())
            body["extended_stats"] = [{"key": KEY, "data": rows(collector())}]
            response.set_data(json.dumps(body))
        return response

    @pages.route("/load")
    def load() -> str:
        web_ui.update_template_args()
        web_ui.template_args |= extension
        page: str = render_template("index.html", template_args=web_ui.template_args)
        return page

    @pages.route("/charts")
    def charts() -> str:
        return charts_page(collector())

    @web_ui.app.before_request
    def from_the_root() -> AnyResponse | None:
        return redirect("/load") if request.path == "/" else None

    web_ui.app.register_blueprint(pages)


def rows(found: Collector | None) -> list[dict[str, str]]:
    """By task, as far as the run has come."""
    if found is None:
        return []
    schedule = found.workload.schedule
    end_s = max([record.ended_s for record in found.records], default=0.0)
    tasks = sorted({record.task for record in found.records})
    table = []
    for name in [*tasks, "all"]:
        own = [record for record in found.records if name in ("all", record.task)]
        figures = figures_of(own, min(schedule.warm_up_s, end_s), max(end_s, 1e-9), found.workload.slo)
        row = {f"column{number}": cell for number, cell in enumerate(cells(figures))}
        table.append({"name": name, "safe_name": name, **row})
    return table


def charts_page(found: Collector | None) -> str:
    parts = ["<p>No run yet.</p>"] if found is None or not found.records else list(map(_figure, series(found)))
    head = "<!doctype html><meta charset=utf-8><meta http-equiv=refresh content=3><title>Chats</title>"
    return f"{head}<style>{STYLE}</style><p><a href=/load>back to locust</a></p>{''.join(parts)}"


def series(found: Collector) -> list[tuple[str, list[Point]]]:
    """For each chart its title and its points (seconds, value), one every `BUCKET_S`."""
    buckets: dict[int, list[Record]] = {}
    for record in found.records:
        buckets.setdefault(int(record.ended_s / BUCKET_S), []).append(record)
    numbers = range(max(buckets) + 1)

    def points(value: Callable[[Sequence[Record]], float]) -> list[Point]:
        return [(number * BUCKET_S, value(buckets.get(number, []))) for number in numbers]

    def worst_ttft_ms(records: Sequence[Record]) -> float:
        return 1000 * max([ttft_s(record) or 0.0 for record in records], default=0.0)

    return [
        ("tokens/s of answers that ended", points(lambda many: sum(one.num_answer_tokens for one in many) / BUCKET_S)),
        ("requests/s", points(lambda many: len(many) / BUCKET_S)),
        (
            "good requests/s (within the SLO)",
            points(lambda many: sum(is_good(one, found.workload.slo) for one in many) / BUCKET_S),
        ),
        ("worst TTFT, ms", points(worst_ttft_ms)),
        ("failures/s", points(lambda many: sum(one.failure is not None for one in many) / BUCKET_S)),
    ]


def _figure(chart: tuple[str, list[Point]]) -> str:
    title, points = chart
    most_x, most_y = max(points[-1][0], 1.0), max(*(y for _, y in points), 1e-9)
    line = " ".join(f"{1000 * x / most_x:.1f},{95 - 90 * y / most_y:.1f}" for x, y in points)
    return (
        f"<h3>{html.escape(title)} (now {points[-1][1]:.1f}, most {most_y:.1f})</h3>"
        f'<svg viewBox="0 0 1000 100" preserveAspectRatio="none"><polyline points="{line}" fill="none" stroke="#06c" '
        f'vector-effect="non-scaling-stroke" stroke-width="1.5"/></svg>'
    )
