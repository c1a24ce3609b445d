"""Dashboards and rules ask for what the server exports, and every alert has its page in the runbook."""

import json
from pathlib import Path

import pytest

from tests.deploy.dashboards import BOARDS, Board, dashboard, expressions
from tests.deploy.programs import CHART, ROOT
from tests.deploy.promql import alerts, rules, sections, series_problems
from tests.generated import assert_up_to_date

FOLDER = CHART / "files" / "dashboards"
RUNBOOK = ROOT / "docs" / "runbook.md"


def file_of(board: Board) -> Path:
    return FOLDER / f"{board.name}.json"


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
def test_dashboard_is_as_its_table_says(board: Board) -> None:
    assert_up_to_date(file_of(board), json.dumps(dashboard(board), indent=1) + "\n")


def test_no_dashboard_is_left_over() -> None:
    assert sorted(FOLDER.glob("*.json")) == sorted(map(file_of, BOARDS))


def test_panels_ask_for_series_that_there_are() -> None:
    problems = {place: list(series_problems(expression)) for place, expression in expressions()}
    assert {place: found for place, found in problems.items() if found} == {}


def test_rules_ask_for_series_that_there_are() -> None:
    problems = {rule.get("alert", rule.get("record")): list(series_problems(rule["expr"])) for rule in rules()}
    assert {place: found for place, found in problems.items() if found} == {}


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("rate(fenhe_http_request_total[5m])", "nobody exports fenhe_http_request_total"),
        ('sum(fenhe_queued_tokens{model_name="a"})', "fenhe_queued_tokens has no label model_name"),
        ("sum(http_requests_total)", "no series of ours in sum(http_requests_total)"),
    ],
)
def test_wrong_expressions_are_found(expression: str, problem: str) -> None:
    assert list(series_problems(expression)) == [problem]


def test_every_alert_has_a_section_in_the_runbook() -> None:
    known = sections(RUNBOOK)
    for name, rule in alerts().items():
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{name.lower()}"
        assert name.lower() in known, name
        assert rule["labels"]["severity"] in ("page", "ticket")
