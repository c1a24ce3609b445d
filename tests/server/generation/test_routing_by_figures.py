"""Requests to a student with figures per task: path, head, language and reason, as a client sees them."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import msgspec
import pytest

from models.student.manifest import HeadKind
from router.tasks import Task
from server.settings.config import RouterConfig, ServerConfig
from tests.router.students import CHEAP_HEAD, path_figures
from tests.server.conftest import (
    SCRIPT,
    Served,
    TinyStudent,
    make_engine,
    make_manifest,
    make_tokenizer,
    open_scripted,
    run_server,
)

FIGURES: tuple[tuple[str, HeadKind, str, Task], ...] = (
    ("shallow", "cheap", "good", "math"),
    ("shallow", "exact", "good", "math"),
    ("shallow", "cheap", "poor", "fact"),
    ("shallow", "exact", "fair", "fact"),
    ("full", "cheap", "fair", "fact"),
    ("full", "cheap", "fair", "legal"),
    ("full", "cheap", "poor", "creative"),
    ("full", "cheap", "fair", "general"),
)
"""Maths may be answered by the shallow path with the cheap head, facts only with the exact one; the full path with the
cheap head will do for law and for anything else, but not for creative writing."""

StartMeasured = Callable[..., Served]


@pytest.fixture
def start_measured(tmp_path: Any) -> Iterator[StartMeasured]:
    """`start_measured(head="exact", router=...)`: a server of one student with the figures above."""
    with ExitStack() as stack:

        def begin(*, head: HeadKind = "cheap", router: RouterConfig | None = None) -> Served:
            figures = [
                path_figures(path, has, kind, task=task, variant="scripted") for path, has, kind, task in FIGURES
            ]
            manifest = msgspec.structs.replace(make_manifest(), figures=tuple(figures), cheap_head=CHEAP_HEAD)
            student = TinyStudent(folder=tmp_path, manifest=manifest, tokenizer=make_tokenizer())
            opened = open_scripted(student, make_engine(SCRIPT, head=head))
            return stack.enter_context(run_server([opened], ServerConfig(router=router or RouterConfig())))

        yield begin


REQUESTS: list[tuple[str, dict[str, Any], tuple[str, str, str]]] = [
    ("what is the math of this?", {}, ("shallow", "cheap", "task")),
    ("tell me a fact about it", {}, ("shallow", "exact", "task")),
    ("tell me a fact about it " * 6, {}, ("full", "cheap", "prompt_length")),
    ("is it legal to do this?", {}, ("full", "cheap", "task")),
    ("be creative with this", {}, ("full", "exact", "no_task_path")),
    ("hello there", {}, ("full", "cheap", "general")),
    ("what is the math of this?", {"fenhe": {"quality": "high"}}, ("shallow", "cheap", "task")),
    ("is it legal to do this?", {"fenhe": {"quality": "high"}}, ("full", "exact", "task")),
    ("what is the math of this?", {"fenhe": {"quality": "full"}}, ("full", "exact", "wished_quality")),
    ("be creative with this", {"fenhe": {"path": "shallow"}}, ("shallow", "cheap", "wished_path")),
    ("12 * 7", {"fenhe": {"task": "math"}}, ("shallow", "cheap", "wished_task")),
    # other languages
    ("Wie viel ist das und warum? math", {}, ("full", "exact", "language_unmeasured")),
    ("十二乘以五等于多少？ math", {}, ("full", "exact", "language_unmeasured")),
    ("Wie viel ist das und warum?", {"fenhe": {"task": "math"}}, ("full", "exact", "language_unmeasured")),
    ("Wie geht es dir heute?", {}, ("full", "exact", "language_unmeasured")),
    ("Wie viel ist das? math", {"fenhe": {"path": "shallow"}}, ("shallow", "cheap", "wished_path")),
    ("Wie viel ist das? math", {"fenhe": {"quality": "full"}}, ("full", "exact", "wished_quality")),
]


def test_requests_take_the_cheapest_path_and_head_that_pass(start_measured: StartMeasured) -> None:
    served = start_measured()
    for prompt, fields, expected in REQUESTS:
        body = served.route(prompt, **fields).json()
        assert (body["path"], body["head"], body["reason"]) == expected, prompt
        headers = served.chat(prompt, **fields).headers
        assert (headers["x-fenhe-path"], headers["x-fenhe-reason"]) == (expected[0], expected[2]), prompt


def test_exact_head_serves_where_there_is_no_other(start_measured: StartMeasured) -> None:
    served = start_measured(head="exact")
    assert [served.route(f"some {task} of this").json()["path"] for task in ("math", "fact", "legal")] == [
        "shallow",
        "shallow",
        "full",
    ]
    assert served.route("some math of this").json()["head"] == "exact"


def test_rule_and_limits_of_the_settings_decide(start_measured: StartMeasured) -> None:
    strict = start_measured(router=RouterConfig(max_own_perplexity={"math": 1.05}))
    assert strict.route("what is the math of this?").json()["reason"] == "min_quality"
    assert strict.http.get("/v1/models/tiny:shallow").json()["fenhe"]["verdicts"][0]["gate"] == "failed"
    faithful = start_measured(router=RouterConfig(rule="fidelity"))
    assert faithful.route("is it legal to do this?").json()["head"] == "exact"


@pytest.mark.parametrize(
    ("prompt", "fields", "language"),
    [
        ("what is the math of this?", {}, "en"),
        ("Wie viel ist das und warum?", {}, "de"),
        ("十二乘以五等于多少？", {"fenhe": {"task": "math"}}, "zh"),
        ("12 * 7", {}, None),
        ("what is this?", {"model": "tiny:full"}, None),
        ("what is this?", {"fenhe": {"quality": "full"}}, None),
    ],
)
def test_route_tells_the_language(served: Served, prompt: str, fields: dict[str, Any], language: str | None) -> None:
    assert served.route(prompt, **fields).json()["language"] == language


def test_language_is_that_of_the_last_user_turn(start_measured: StartMeasured) -> None:
    served = start_measured()
    turns = [
        {"role": "user", "content": "Was ist das?"},
        {"role": "assistant", "content": "Ein Buch."},
        {"role": "user", "content": "and what is its math?"},
    ]
    body = served.post("/v1/route", {"messages": turns}).json()
    assert (body["language"], body["path"]) == ("en", "shallow")


def test_prompts_of_one_request_take_the_path_that_all_of_them_may(start_measured: StartMeasured) -> None:
    served = start_measured()
    prompts = ["what is the math of this?", "Wie viel ist das und warum? math"]
    body = served.post("/v1/route", {"prompt": prompts}).json()
    assert (body["path"], body["head"], body["language"]) == ("full", "exact", "de")
    assert body["reason"] == "language_unmeasured"


def test_student_without_figures_answers_any_language_as_before(served: Served) -> None:
    body = served.route("Wie viel ist das und warum? math").json()
    assert (body["path"], body["head"], body["reason"]) == ("shallow", "exact", "task")


def test_reasons_are_counted_by_a_bounded_label(start_measured: StartMeasured) -> None:
    served = start_measured()
    for prompt in ("Wie geht es dir heute?", "Comment est-ce que tu fais ça ?", "你好吗？"):
        served.chat(prompt)
    lines = [
        line
        for line in served.http.get("/metrics").text.split("\n")
        if line.startswith("fenhe_route_decisions_total") and "language_unmeasured" in line
    ]
    assert len(lines) == 1
    assert lines[0].endswith(" 3.0")


def test_models_list_cost_and_verdicts_of_every_path(start_measured: StartMeasured) -> None:
    served = start_measured()
    models = {model.id: model.model_dump()["fenhe"] for model in served.client.models.list().data}
    shallow, full = models["tiny:shallow"], models["tiny:full"]
    assert (shallow["head"], full["head"]) == ("cheap", "cheap")
    assert 0 < shallow["compute_share"] < full["compute_share"] < 1
    assert [(one["task"], one["head"], one["fidelity"], one["field"], one["gate"]) for one in shallow["verdicts"]] == [
        ("math", "cheap", "passed", "passed", "passed"),
        ("math", "exact", "passed", "passed", "passed"),
        ("fact", "cheap", "failed", "failed", "failed"),
        ("fact", "exact", "failed", "passed", "passed"),
    ]
    assert {one["task"] for one in full["verdicts"] if one["head"] == "cheap" and one["gate"] == "passed"} == {
        "fact",
        "legal",
        "general",
    }
    exact = [one for one in full["verdicts"] if one["head"] == "exact"]
    assert [one["task"] for one in exact] == ["math", "fact", "legal", "creative", "general"]
    assert {one[rule] for one in exact for rule in ("fidelity", "field", "gate")} == {"passed"}
    assert models["tiny"] == full | {"is_routed": True}


def test_models_of_a_student_without_figures_have_cost_and_no_verdicts(served: Served) -> None:
    shallow, full = (served.http.get(f"/v1/models/tiny:{path}").json()["fenhe"] for path in ("shallow", "full"))
    assert (shallow["head"], shallow["verdicts"], full["verdicts"]) == ("exact", [], [])
    assert full["compute_share"] == 1.0
    assert 0.3 < shallow["compute_share"] < 1.0
