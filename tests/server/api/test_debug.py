"""`/debug/state`: who may see it, what it says while work runs and after, and what it never says."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from models.errors import EngineUnhealthy
from server.settings.config import AdminConfig, ServerConfig
from tests.server.conftest import SCRIPT, Served, Start, make_engine, make_student, open_scripted, run_server, until

KEY = "open sesame"
AUTH = {"authorization": f"Bearer {KEY}"}
CONFIG = ServerConfig(admin=AdminConfig(key_sha256=hashlib.sha256(KEY.encode()).hexdigest()))
SECRET = "the-owl-flies-at-noon"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    students = [
        open_scripted(make_student(tmp_path, name), make_engine(SCRIPT, student=name, max_running=1))
        for name in ("big", "small")
    ]
    with run_server(students, CONFIG) as running:
        yield running


def state_of(served: Served) -> Any:
    response = served.http.get("/debug/state", headers=AUTH)
    assert response.is_success, response.text
    return response.json()


@contextlib.contextmanager
def streaming(served: Served, id: str) -> Iterator[None]:
    """While a slow request runs, or waits for its turn behind another one; its client leaves at the end."""
    body = {"model": "big:full", "prompt": f"slow {SECRET}", "stream": True, "max_tokens": 200, "temperature": 1}
    headers = {"content-type": "application/json", "x-request-id": id}
    with contextlib.closing(HTTPConnection(served.url.removeprefix("http://"), timeout=30)) as client:
        client.request("POST", "/v1/completions", json.dumps(body), headers)
        assert until(lambda: id in state_of(served)["open_requests"])
        yield


def test_state_needs_the_admin_key(served: Served, start: Start) -> None:
    assert served.http.get("/debug/state").status_code == 401
    assert served.http.get("/debug/state", headers={"authorization": "Bearer nonsense"}).status_code == 401
    assert start().http.get("/debug/state", headers=AUTH).status_code == 404


def test_state_of_idle_server_is_empty(served: Served) -> None:
    state = state_of(served)
    assert [student["name"] for student in state["students"]] == ["big", "small"]
    for student in state["students"]:
        assert (student["running"], student["waiting"], student["integrity"]) == ([], [], [])
        assert student["door"]["num_queued"] == {"high": 0, "normal": 0, "low": 0}
        assert all(path["is_servable"] for path in student["paths"])
    assert (state["open_requests"], state["is_draining"]) == ([], False)


def test_state_tells_what_runs_and_what_waits(served: Served) -> None:
    with streaming(served, "first"):
        assert until(lambda: any(one["num_completion_tokens"] for one in state_of(served)["students"][0]["running"]))
        with streaming(served, "second"):
            assert until(lambda: bool(state_of(served)["students"][0]["waiting"]))
            state = state_of(served)
        big, small = state["students"]
        (running,) = big["running"]
        told = {name: running[name] for name in ("id", "path", "slot", "status", "max_completion_tokens")}
        assert told == {"id": "first-0", "path": "full", "slot": 0, "status": "decoding", "max_completion_tokens": 200}
        assert (running["head"], big["head"]) == ("exact", "exact")
        assert running["num_prompt_tokens"] == len(f"slow {SECRET}")
        assert running["num_computed_tokens"] == running["num_prompt_tokens"] + running["num_completion_tokens"]
        assert running["num_completion_tokens"] > 0
        assert running["age_ms"] > 0
        assert [(one["id"], one["status"], one["slot"]) for one in big["waiting"]] == [("second-0", "waiting", None)]
        assert (big["door"]["num_running"], big["door"]["running_tokens"]) == (2, 2 * (len(f"slow {SECRET}") + 200))
        assert small["running"] == []
        assert state["open_requests"] == ["first", "second"]
        assert state["cache"]["outcomes"]["bypass"] >= 1
    assert until(lambda: state_of(served)["students"][0]["running"] == [])


def test_state_holds_nothing_of_prompts_and_keys(served: Served) -> None:
    with streaming(served, "first"):
        assert until(lambda: bool(state_of(served)["students"][0]["running"]))
        text = served.http.get("/debug/state", headers=AUTH).text
    assert '"first-0"' in text
    assert SECRET not in text
    assert KEY not in text


def test_state_is_told_of_an_engine_that_does_not_answer(served: Served) -> None:
    def hang(limit_s: float) -> Any:
        raise EngineUnhealthy(f"the engine's thread did not answer within {limit_s:g} s")

    served.engines["big"].sequences = hang  # type: ignore[method-assign]
    big, small = state_of(served)["students"]
    assert "did not answer" in big["integrity"][0]
    assert small["integrity"] == []


def test_state_tells_operators_what_ails_an_engine(served: Served) -> None:
    """Other endpoints show a sentence that names no file."""
    detail = "the student cannot be loaded: OSError('/srv/models/big/head.bin')"
    for name in ("big", "small"):
        served.engines[name].sicken("the student cannot be loaded; the server's log has the details", detail)
    assert state_of(served)["students"][0]["error"] == detail
    listed = served.http.get("/admin/students", headers=AUTH).json()["students"]
    assert [student["error"] for student in listed] == [detail, detail]
    for path in ("/health", "/readyz", "/startup"):
        text = served.http.get(path).text
        assert "cannot be loaded; the server's log" in text
        assert "/srv" not in text
    assert "/srv" not in served.chat("hello").text + served.route("hello").text


def test_state_tells_what_does_not_add_up(served: Served) -> None:
    served.engines["small"].audit = lambda limit_s: ["one slot too many"]  # type: ignore[method-assign]
    assert [student["integrity"] for student in state_of(served)["students"]] == [[], ["one slot too many"]]
