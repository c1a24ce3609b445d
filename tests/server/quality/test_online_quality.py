"""Answers scored while the server runs: which ones, what is shown of them, and what routing makes of it."""

import contextlib
import dataclasses
import hashlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from engines.answer_score import AnswerScore
from engines.scripted import Line
from engines.sequence import GenerationRequest
from models.errors import ConfigError, StepFailed
from router.quality.config import OnlineQualityConfig
from server.lifecycle.reload import merge
from server.settings.config import AdminConfig, KeysConfig, ServerConfig
from tests.server.conftest import SCRIPT, Served, TinyStudent, make_engine, open_scripted, run_server, until

KEY = "fk-admin"
AUTH = {"authorization": f"Bearer {KEY}"}
QUALITY = OnlineQualityConfig(
    mode="act", share=1.0, engine_share=1.0, min_samples=2, min_answer_tokens=4, rest_s=0.05, half_life_samples=4
)
LINES = {
    **SCRIPT,
    "kaput": Line(pieces=("x ",) * 8, error=StepFailed("no")),
    "brief": Line(pieces=("no",)),
}


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


class Judge:
    """Says of every answer what its path keeps, by path; the full path keeps all."""

    def __init__(self, keeps: float = 1.0) -> None:
        self.keeps = keeps
        self.asked: list[GenerationRequest] = []
        self.fails = False

    def __call__(self, request: GenerationRequest) -> AnswerScore:
        if self.fails:
            raise RuntimeError("the judge was told to fail")
        self.asked.append(request)
        assert request.scored_from is not None
        num_tokens = len(request.prompt_token_ids) - request.scored_from
        return AnswerScore(num_tokens=num_tokens, nats=100.0, expected_nats=100.0 * self.keeps, num_agreed=1)


@pytest.fixture
def judge() -> Judge:
    return Judge()


Open = Callable[..., Served]


@pytest.fixture
def open_server(student: TinyStudent, judge: Judge) -> Iterator[Open]:
    """`open_server(keys_file, engine_options, **quality settings)`."""
    with contextlib.ExitStack() as stack:

        def begin(keys: Path | None = None, engine: dict[str, Any] | None = None, **settings: Any) -> Served:
            config = ServerConfig(
                admin=AdminConfig(key_sha256=digest(KEY)),
                keys=KeysConfig(file=keys),
                online_quality=dataclasses.replace(QUALITY, **settings),
            )
            options = {"score_of": judge, **(engine or {})}
            return stack.enter_context(run_server([open_scripted(student, make_engine(LINES, **options))], config))

        yield begin


def state(served: Served) -> Any:
    return served.http.get("/debug/state", headers=AUTH).json()["online_quality"]


def ask(served: Served, prompt: str = "long math", **fields: Any) -> httpx.Response:
    response = served.chat(prompt, **fields)
    assert response.status_code == 200
    return response


def asked_and_scored(served: Served, count: int, prompt: str = "long math") -> None:
    for _ in range(count):
        before = state(served)["num_scored"]
        ask(served, prompt)
        assert until(lambda before=before: state(served)["num_scored"] > before)  # type: ignore[misc]


def left_out(served: Served, why: str) -> bool:
    return until(lambda: state(served)["left_out"].get(why, 0) > 0)


def row(served: Served, path: str = "shallow", task: str = "math") -> Any:
    return next((one for one in state(served)["tasks"] if (one["task"], one["path"]) == (task, path)), None)


def test_scored_answer_is_shown_and_nowhere_counted_as_anybody_s(
    open_server: Open, judge: Judge, caplog: pytest.LogCaptureFixture
) -> None:
    served = open_server(min_samples=30, half_life_samples=32)
    judge.keeps = 0.8
    with caplog.at_level(logging.INFO, "server.request_log"):
        asked_and_scored(served, 2)
    found = row(served)
    assert (found["kept"], found["floor"], found["is_open"], found["num_scored"]) == (0.8, 0.75, True, 2)
    assert found["low"] <= found["kept"] <= found["high"]
    assert state(served)["held"] is None
    scored = [record.getMessage() for record in caplog.records if "answer scored" in record.getMessage()]
    finished = [record.getMessage() for record in caplog.records if "request finished" in record.getMessage()]
    assert len(scored) == 2
    assert "task=math path=shallow head=exact shadow=False" in scored[0]
    assert sum("online_quality=chosen" in line for line in finished) == 2
    metrics = served.http.get("/metrics").text
    use = 'head="exact",path="shallow",student="tiny",task="math"'
    (kept,) = [line for line in metrics.splitlines() if line.startswith(f"fenhe_online_kept{{{use}}}")]
    assert float(kept.split()[-1]) == pytest.approx(0.8)
    assert "fenhe_online_scored_total" in metrics
    assert 'fenhe_path_sequences_total{path="shallow",student="tiny"} 2.0' in metrics
    assert 'fenhe_path_sequences_total{path="full"' not in metrics
    assert served.engine.status().num_accepted == 2


def test_answer_is_scored_behind_its_prompt_with_its_sampling(open_server: Open, judge: Judge) -> None:
    served = open_server(max_answer_tokens=10)
    ask(served, temperature=0.3, top_p=0.8, seed=7)
    assert until(lambda: len(judge.asked) == 1)
    original = served.engine.submitted[0]
    (request,) = judge.asked
    assert request.scored_from == len(original.prompt_token_ids)
    assert request.prompt_token_ids == (*original.prompt_token_ids, *range(10))
    assert (request.path, request.in_background) == ("full", True)
    assert (request.sampling.temperature, request.sampling.top_p, request.sampling.max_tokens) == (0.3, 0.8, 0)


@pytest.mark.parametrize(
    ("why", "prompt", "fields"),
    [
        ("opted_out", "long math", {"fenhe": {"online_quality": False}}),
        ("short", "brief math", {}),
        ("short", "long math", {"max_tokens": 2}),
        ("long_prompt", "long math " + "x" * 200, {}),
        ("sampling", "long math", {"presence_penalty": 0.5}),
        ("sampling", "long math", {"logit_bias": {"7": 1}}),
        ("sampling", "long math", {"ignore_eos": True}),
        ("grammar", "long math", {"response_format": {"type": "json_object"}}),
        ("no_task", "long math", {"model": "tiny:shallow"}),
    ],
)
def test_answers_that_say_nothing_are_left_out(
    open_server: Open, judge: Judge, why: str, prompt: str, fields: dict[str, Any]
) -> None:
    served = open_server(max_prompt_tokens=120)
    served.chat(prompt, **fields)
    assert left_out(served, why)
    assert judge.asked == []


def test_named_path_with_a_named_task_is_scored(open_server: Open) -> None:
    served = open_server()
    ask(served, model="tiny:shallow", fenhe={"task": "legal"})
    assert until(lambda: row(served, "shallow", "legal") is not None)


def test_cached_answer_is_not_scored_again(open_server: Open, judge: Judge) -> None:
    served = open_server()
    for _ in range(3):
        ask(served, temperature=0)
    asked_and_scored(served, 1, "long fact")
    assert len(judge.asked) == 2


def test_answer_that_was_cut_short_is_not_scored(open_server: Open, judge: Judge) -> None:
    served = open_server()
    with served.client.chat.completions.create(
        model="auto", messages=[{"role": "user", "content": "slow math"}], stream=True
    ) as stream:
        next(iter(stream))
    assert left_out(served, "cut_short")
    served.chat("kaput math")
    assert until(lambda: state(served)["left_out"]["cut_short"] == 2)
    assert judge.asked == []


def test_tenant_that_opted_out_is_never_scored(open_server: Open, judge: Judge, tmp_path: Path) -> None:
    """One of its keys says so; a request cannot overrule it."""
    file = tmp_path / "keys.toml"
    tables = [("a", "acme", "online_quality = false"), ("b", "acme", ""), ("c", "open", "")]
    file.write_text(
        "\n".join(
            f'[[key]]\nname = "{name}"\ntenant = "{tenant}"\nsha256 = "{digest(name)}"\n{more}'
            for name, tenant, more in tables
        )
    )
    served = open_server(file)
    for key in ("a", "b"):
        options = {"online_quality": True}
        assert ask(served, headers={"authorization": f"Bearer {key}"}, fenhe=options).status_code == 200
    assert until(lambda: state(served)["left_out"].get("opted_out") == 2)
    ask(served, headers={"authorization": "Bearer c"})
    assert until(lambda: len(judge.asked) == 1)


def test_bad_path_leaves_routing_and_comes_back_once_it_has_recovered(open_server: Open, judge: Judge) -> None:
    served = open_server()
    judge.keeps = 0.5
    asked_and_scored(served, 3)
    assert until(lambda: not row(served)["is_open"] if row(served) else bool(state(served)["changes"]))
    (change,) = state(served)["changes"]
    assert (change["task"], change["path"], change["action"]) == ("math", "shallow", "take_out")
    assert ask(served, seed=5).headers["x-fenhe-path"] == "full"
    assert ask(served, "long fact").headers["x-fenhe-path"] == "full"
    judge.keeps = 1.0
    for seed in range(40):
        before = len(judge.asked)
        if ask(served, seed=seed).headers["x-fenhe-path"] == "shallow":
            break
        assert until(lambda before=before: len(judge.asked) > before)  # type: ignore[misc]
    assert state(served)["changes"][0]["action"] == "put_back"
    shadows = [one for one in served.engine.submitted if one.in_background and one.scored_from is None]
    assert shadows
    assert {one.path for one in shadows} == {"shallow"}
    assert 'kind="shadow"' in served.http.get("/metrics").text


def test_observing_changes_nothing(open_server: Open, judge: Judge) -> None:
    served = open_server(mode="observe")
    judge.keeps = 0.2
    asked_and_scored(served, 6)
    assert row(served)["kept"] == 0.2
    assert (state(served)["changes"], row(served)["is_open"]) == ([], True)
    assert ask(served, seed=1).headers["x-fenhe-path"] == "shallow"


def test_off_scores_nothing_and_shows_nothing(open_server: Open, judge: Judge) -> None:
    served = open_server(mode="off")
    ask(served)
    assert (state(served)["mode"], state(served)["held"], state(served)["tasks"]) == ("off", None, [])
    assert "fenhe_online" not in served.http.get("/metrics").text
    assert judge.asked == []


def pins(served: Served, method: str, **fields: Any) -> httpx.Response:
    if method == "POST":
        return served.http.post("/admin/online-quality/pins", json=fields, headers=AUTH)
    return served.http.delete("/admin/online-quality/pins", params=fields, headers=AUTH)


def test_operators_pin_paths_in_and_out(open_server: Open, judge: Judge) -> None:
    served = open_server()
    judge.keeps = 0.5
    asked_and_scored(served, 3)
    assert until(lambda: bool(state(served)["changes"]))
    body = pins(served, "POST", task="math", path="shallow").json()
    place = {"student": "tiny", "task": "math", "path": "shallow"}
    assert body == {"pins": [{**place, "is_open": True, "decided_by": "operator", "reason": ""}]}
    assert ask(served, seed=1).headers["x-fenhe-path"] == "shallow"
    assert state(served)["pins"] == body["pins"]
    assert pins(served, "DELETE", task="math", path="shallow").json() == {"pins": []}
    pins(served, "POST", task="math", path="shallow", is_open=False)
    assert ask(served, seed=2).headers["x-fenhe-path"] == "full"
    assert state(served)["changes"][0]["action"] == "pin"


def test_console_shows_a_pin_at_once(open_server: Open) -> None:
    served = open_server()
    shown = [served.http.get("/console/state").json()["online_quality"]["pins"]]
    pins(served, "POST", task="math", path="shallow")
    shown.append(served.http.get("/console/state").json()["online_quality"]["pins"])
    assert [len(one) for one in shown] == [0, 1]


def test_path_that_is_out_says_who_decided_that_and_why(open_server: Open, judge: Judge) -> None:
    """Also while nothing has been scored since then, or ever."""
    served = open_server()
    judge.keeps = 0.5
    asked_and_scored(served, 3)
    assert until(lambda: bool(state(served)["changes"]))
    found = row(served)
    assert (found["is_open"], found["decided_by"]) == (False, "controller")
    assert "below the floor of 0.75" in found["reason"]
    pins(served, "POST", task="fact", path="shallow", is_open=False, reason=" too\n\x1bmany  mistakes ")
    found = row(served, task="fact")
    assert (found["kept"], found["num_samples"], found["floor"]) == (None, 0.0, 0.75)
    assert (found["is_open"], found["decided_by"], found["reason"]) == (False, "operator", "too many mistakes")
    (pin,) = state(served)["pins"]
    assert (pin["decided_by"], pin["reason"]) == ("operator", "too many mistakes")
    assert state(served)["changes"][0]["reason"] == "by an operator: it stays out; too many mistakes"
    metrics = served.http.get("/metrics").text
    use = 'head="exact",path="shallow",student="tiny",task="fact"'
    assert f"fenhe_online_path_open{{{use}}} 0.0" in metrics
    assert f"fenhe_online_kept{{{use}}}" not in metrics
    pins(served, "DELETE", task="fact", path="shallow")
    assert row(served, task="fact") is None


def test_pins_of_the_settings_hold_from_the_start_and_an_operator_may_overrule_them(open_server: Open) -> None:
    served = open_server(pins={"math.shallow": "out"})
    place = {"student": "tiny", "task": "math", "path": "shallow"}
    settled = {**place, "is_open": False, "decided_by": "settings", "reason": ""}
    assert state(served)["pins"] == [settled]
    assert (row(served)["is_open"], row(served)["decided_by"]) == (False, "settings")
    assert state(served)["changes"][0]["reason"] == "by the settings: it stays out"
    assert ask(served).headers["x-fenhe-path"] == "full"
    assert "change online_quality.pins.math.shallow" in pins(served, "DELETE", task="math", path="shallow").text
    pins(served, "POST", task="math", path="shallow")
    assert ask(served, seed=1).headers["x-fenhe-path"] == "shallow"
    assert pins(served, "DELETE", task="math", path="shallow").json() == {"pins": [settled]}
    assert ask(served, seed=2).headers["x-fenhe-path"] == "full"


def test_pins_of_the_settings_come_and_go_with_a_reload(open_server: Open) -> None:
    served = open_server()
    settings: list[tuple[Any, str]] = [({"math.shallow": "out"}, "full"), ({}, "shallow")]
    for pinned, path in settings:
        new = dataclasses.replace(QUALITY, pins=pinned)
        served.context.live.config = dataclasses.replace(served.context.config, online_quality=new)
        served.context.quality.apply_settings()
        assert ask(served, seed=len(pinned)).headers["x-fenhe-path"] == path
    assert [one["action"] for one in state(served)["changes"]] == ["unpin", "pin"]


def test_settings_that_pin_what_is_not_there_do_not_start(open_server: Open) -> None:
    with pytest.raises(ConfigError, match="no student has a path 'deep'; there are full, shallow"):
        open_server(pins={"math.deep": "out"})


@pytest.mark.parametrize(
    ("method", "fields", "status"),
    [
        ("POST", {"task": "math", "path": "nowhere"}, 400),
        ("POST", {"task": "cooking", "path": "shallow"}, 400),
        ("POST", {"task": "math", "path": "shallow", "reason": "x" * 201}, 400),
        ("POST", {"task": "math", "path": "full", "is_open": False}, 400),
        ("POST", {"task": "math", "path": "shallow", "student": "nobody"}, 404),
        ("DELETE", {"task": "math", "path": "shallow"}, 400),
        ("DELETE", {"task": "math", "path": "shallow", "student": "tiny"}, 404),
        ("DELETE", {"task": "cooking", "path": "shallow"}, 400),
        ("DELETE", {"task": "math", "path": "shallow", "extra": "1"}, 400),
    ],
)
def test_wrong_pins_are_refused(open_server: Open, method: str, fields: dict[str, Any], status: int) -> None:
    assert pins(open_server(), method, **fields).status_code == status


def test_pins_need_the_admin_key(open_server: Open) -> None:
    served = open_server()
    for method in ("POST", "DELETE"):
        assert served.http.request(method, "/admin/online-quality/pins").status_code == 401


def test_it_says_why_it_holds(open_server: Open, judge: Judge) -> None:
    served = open_server()
    served.engine.sicken("no more")
    assert state(served)["held"] == "the engine of `tiny` is unhealthy: no more"
    served.engine.sicken(None)
    served.context.pool.drain("tiny")
    assert state(served)["held"] == "`tiny` is draining"
    served.context.pool.resume("tiny")
    assert state(served)["held"] is None
    served.context.drain.is_draining = True
    assert served.context.scorer.why_held({"tiny": None}) == "the server is stopping"
    served.context.drain.is_draining = False


def test_state_asks_each_student_once(open_server: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    served = open_server()
    scorer = served.context.scorer
    asked: list[int] = []
    original = scorer.held_by_student

    def held_by_student() -> dict[str, str | None]:
        asked.append(1)
        return original()

    monkeypatch.setattr(scorer, "held_by_student", held_by_student)
    assert state(served)["held_by_student"] == {"tiny": None}
    assert len(asked) == 1


def test_it_holds_until_the_full_path_is_loaded(open_server: Open, judge: Judge) -> None:
    served = open_server(engine={"is_loaded": False})
    served.engine.load(3)
    ask(served)
    assert state(served)["held"] == "the full path of `tiny` is not loaded"
    assert (state(served)["num_waiting"], judge.asked) == (1, [])
    served.engine.load(5)
    assert until(lambda: len(judge.asked) == 1)


def test_it_holds_while_more_run_than_it_may_disturb(open_server: Open, judge: Judge) -> None:
    served = open_server(max_running=0)
    with served.client.chat.completions.create(
        model="auto", messages=[{"role": "user", "content": "slow fact"}], stream=True
    ) as stream:
        next(iter(stream))
        ask(served)
        assert state(served)["held"] == "1 sequences run in `tiny`, more than 0"
        assert judge.asked == []
    assert until(lambda: len(judge.asked) == 1)


def test_student_without_a_scorer_says_so(open_server: Open) -> None:
    served = open_server(engine={"score_of": None})
    ask(served)
    assert left_out(served, "no_scorer")
    assert state(served)["held"] == "the engine of `tiny` cannot score answers"


def test_nothing_is_scored_beyond_the_budget(open_server: Open, judge: Judge) -> None:
    served = open_server(engine_share=0.0)
    status = dataclasses.replace(served.engine.status(), background_s=2.5)
    served.engine.status = lambda: status  # type: ignore[method-assign]
    ask(served)
    assert "has had its 0.00%" in state(served)["held"]
    assert judge.asked == []


def test_scorer_survives_an_engine_that_fails(open_server: Open, judge: Judge) -> None:
    served = open_server()
    refuses = True
    submit = served.engine.submit

    def failing(request: GenerationRequest) -> None:
        if request.in_background and refuses:
            raise StepFailed("no")
        submit(request)

    served.engine.submit = failing  # type: ignore[method-assign]
    ask(served)
    assert left_out(served, "failed")
    refuses = False
    ask(served, seed=3)
    assert until(lambda: len(judge.asked) == 1)


def test_scorer_that_fails_itself_says_so(open_server: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    served = open_server()
    monkeypatch.setattr(served.context.scorer, "held_by_student", lambda: 1 / 0)
    ask(served)
    assert until(lambda: served.context.scorer._has_failed)
    monkeypatch.undo()
    assert until(lambda: state(served)["held"] == "the scorer has failed; the log says why")
    assert ask(served, seed=4).status_code == 200


def test_turning_it_off_undoes_what_it_did(open_server: Open, judge: Judge) -> None:
    served = open_server()
    judge.keeps = 0.5
    asked_and_scored(served, 3)
    assert until(lambda: bool(state(served)["changes"]))
    new = dataclasses.replace(served.context.config, online_quality=OnlineQualityConfig(mode="off"))
    served.context.live.config = merge(served.context.config, new)
    served.context.quality.apply_settings()
    assert ask(served, seed=1).headers["x-fenhe-path"] == "shallow"
