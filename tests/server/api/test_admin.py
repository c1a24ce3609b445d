"""Students added, drained and removed while the server runs, and who may do that."""

import ctypes
import hashlib
import threading
import weakref
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import httpx
import pytest

from engines.scripted import Line, ScriptedEngine
from models.errors import ConfigError
from models.student.manifest import write_manifest
from server.lifecycle import student_changes
from server.lifecycle.memory import give_memory_back
from server.settings.config import AdminConfig, ServerConfig, StudentConfig
from server.students.open_student import Opened
from tests.server.conftest import SCRIPT, Served, StartPool, events_of, make_engine, make_manifest, make_student, until

KEY = "open sesame"
AUTH = {"authorization": f"Bearer {KEY}"}
CONFIG = ServerConfig(admin=AdminConfig(key_sha256=hashlib.sha256(KEY.encode()).hexdigest().upper()), grace_s=0.2)
SLOW = {"model": "auto", "prompt": "slow", "stream": True, "max_tokens": 200}


class Workshop:
    """Opens students on scripted engines; holds them up until `gate` is set, or fails them."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.failure: Exception | None = None
        self.start_failure: Exception | None = None
        self.num_called = 0
        self.engines: list[weakref.ref[ScriptedEngine]] = []

    def __call__(self, config: StudentConfig) -> Opened:
        self.num_called += 1
        assert self.gate.wait(60)
        if self.failure is not None:
            raise self.failure
        assert config.folder is not None
        assert config.name is not None
        student = make_student(config.folder, config.name)
        engine = make_engine(SCRIPT, student=config.name)
        if self.start_failure is not None:
            engine.start = Mock(side_effect=self.start_failure)  # type: ignore[method-assign]
        self.engines.append(weakref.ref(engine))
        return Opened(name=config.name, student=student, engine=engine, tasks=frozenset(config.tasks))


@pytest.fixture
def workshop() -> Workshop:
    return Workshop()


@pytest.fixture
def served(start_pool: StartPool, workshop: Workshop) -> Served:
    return start_pool({"first": (), "second": ()}, config=CONFIG, opener=workshop)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "third"
    folder.mkdir()
    write_manifest(folder, make_manifest("third"))
    return folder


def admin(served: Served, method: str, path: str = "", body: Any = None) -> httpx.Response:
    return served.http.request(method, f"/admin/students{path}", json=body, headers=AUTH)


def listed(served: Served) -> dict[str, str]:
    """Name and status of every student."""
    return {one["name"]: one["status"] for one in admin(served, "GET").json()["students"]}


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ""), ("POST", ""), ("POST", "/first/drain"), ("POST", "/first/resume"), ("DELETE", "/first")],
)
def test_admin_needs_its_key(served: Served, method: str, path: str) -> None:
    for value in ("", "Bearer", "Bearer wrong", f"Basic {KEY}", KEY, f"Bearer {CONFIG.admin.key_sha256}", "Bearer é"):
        headers = [(b"authorization", value.encode())]
        response = served.http.request(method, f"/admin/students{path}", headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key"), value
        assert response.headers["www-authenticate"] == "Bearer"
    assert listed(served) == {"first": "ready", "second": "ready"}


def test_admin_without_a_key_set_says_how_to_switch_it_on(start_pool: StartPool) -> None:
    served = start_pool({"first": ()})
    response = admin(served, "GET")
    assert response.status_code == 404
    assert "key_sha256" in response.json()["error"]["message"]


def test_admin_lists_students_in_full(served: Served) -> None:
    with served.http.stream("POST", "/v1/completions", json=SLOW | {"model": "second"}):
        body = admin(served, "GET").json()["students"][1]
    assert (body["name"], body["num_running"], body["variant"], body["tasks"]) == ("second", 1, "scripted", [])
    assert body["head"] == "exact"


def test_added_student_is_served(served: Served, workshop: Workshop, folder: Path) -> None:
    workshop.gate.clear()
    response = admin(served, "POST", body={"folder": str(folder), "tasks": ["math"]})
    assert (response.status_code, response.json()["status"]) == (202, "opening")
    assert listed(served)["third"] == "opening"
    assert served.chat("math").headers["x-fenhe-student"] == "first"
    workshop.gate.set()
    assert until(lambda: listed(served)["third"] == "ready")
    response = served.chat("math")
    assert response.headers["x-fenhe-student"] == "third"
    assert response.json()["choices"][0]["message"]["content"] == "Hello, world!"
    assert "third:full" in {model.id for model in served.client.models.list().data}


def test_added_student_may_get_another_name(served: Served, folder: Path) -> None:
    assert admin(served, "POST", body={"folder": str(folder), "name": "an other-1.5"}).json()["name"] == "an other-1.5"
    assert until(lambda: listed(served).get("an other-1.5") == "ready")
    assert served.chat("hello", model="an other-1.5:full").headers["x-fenhe-student"] == "an other-1.5"
    assert admin(served, "POST", "/an%20other-1.5/drain").json()["status"] == "draining"
    assert admin(served, "DELETE", "/an%20other-1.5").status_code == 202


def test_model_file_may_be_added_and_is_called_as_its_file(
    served: Served, tiny_source: Any, tiny_gguf: Any, tmp_path: Path
) -> None:
    file = tiny_gguf(tiny_source("llama"))
    assert admin(served, "POST", body={"folder": str(file)}).json()["name"] == file.stem
    file.write_bytes(b"GGUF")
    refused = admin(served, "POST", body={"folder": str(file), "name": "broken"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "folder")
    assert str(file) in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"name": "first"}, "name"),
        ({"name": "auto"}, "name"),
        ({"name": ""}, "name"),
        ({"name": "two\r\nlines"}, "name"),
        ({"name": "org/other"}, "name"),
        ({"folder": "/nowhere"}, "folder"),
        ({"folder": "/no\0where"}, "folder"),
        ({"folder": "~nosuchuser/x"}, "folder"),
        ({"tasks": ["cooking"]}, "tasks[0]"),
        ({"nmae": "x"}, "nmae"),
    ],
)
def test_add_refuses_by_name(served: Served, folder: Path, fields: dict[str, Any], param: str) -> None:
    response = admin(served, "POST", body={"folder": str(folder), **fields})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert list(listed(served)) == ["first", "second"]


def test_add_twice_at_once_is_refused(served: Served, workshop: Workshop, folder: Path) -> None:
    workshop.gate.clear()
    assert admin(served, "POST", body={"folder": str(folder)}).status_code == 202
    assert admin(served, "POST", body={"folder": str(folder)}).status_code == 400
    workshop.gate.set()


@pytest.mark.parametrize("failure", [ConfigError("the weights are gone"), ZeroDivisionError("the weights are gone")])
def test_student_that_cannot_be_opened_is_told_and_forgotten(
    served: Served, workshop: Workshop, folder: Path, failure: Exception
) -> None:
    workshop.failure = failure
    assert admin(served, "POST", body={"folder": str(folder)}).status_code == 202
    assert until(lambda: listed(served)["third"] == "failed")
    assert "the weights are gone" in admin(served, "GET").json()["students"][-1]["error"]
    workshop.failure = None
    assert admin(served, "POST", body={"folder": str(folder)}).status_code == 202
    assert until(lambda: listed(served)["third"] == "ready")


def test_student_whose_engine_cannot_start_has_failed(served: Served, workshop: Workshop, folder: Path) -> None:
    workshop.start_failure = RuntimeError("can't start new thread")
    assert admin(served, "POST", body={"folder": str(folder)}).status_code == 202
    assert until(lambda: listed(served)["third"] == "failed")
    assert "can't start new thread" in admin(served, "GET").json()["students"][-1]["error"]
    assert served.chat("hello", model="third").status_code == 404
    assert 'model_name="third"' not in served.http.get("/metrics").text
    workshop.start_failure = None
    assert admin(served, "POST", body={"folder": str(folder)}).status_code == 202
    assert until(lambda: listed(served)["third"] == "ready")


def test_students_are_opened_one_at_a_time(served: Served, workshop: Workshop, folder: Path) -> None:
    workshop.gate.clear()
    for name in ("third", "fourth"):
        assert admin(served, "POST", body={"folder": str(folder), "name": name}).status_code == 202
    assert until(lambda: workshop.num_called == 1)
    assert served.post("/tokenize", {"model": "first", "prompt": "x" * 10_000}).status_code == 200
    assert workshop.num_called == 1
    workshop.gate.set()
    assert until(lambda: listed(served) == dict.fromkeys(("first", "second", "third", "fourth"), "ready"))


def test_student_that_is_being_opened_is_not_removed(served: Served, workshop: Workshop, folder: Path) -> None:
    workshop.gate.clear()
    admin(served, "POST", body={"folder": str(folder)})
    response = admin(served, "DELETE", "/third")
    assert (response.status_code, "still being opened" in response.json()["error"]["message"]) == (400, True)
    workshop.gate.set()
    assert until(lambda: listed(served)["third"] == "ready")


def test_leaving_server_takes_no_student_and_starts_none(served: Served, workshop: Workshop, folder: Path) -> None:
    workshop.gate.clear()
    admin(served, "POST", body={"folder": str(folder)})
    served.context.drain.is_draining = True
    response = admin(served, "POST", body={"folder": str(folder), "name": "fourth"})
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    workshop.gate.set()
    assert until(lambda: listed(served) == {"first": "ready", "second": "ready", "third": "failed"})


def test_server_ends_while_a_student_is_being_opened(
    monkeypatch: pytest.MonkeyPatch, start_pool: StartPool, workshop: Workshop, folder: Path
) -> None:
    """The fixture's end, which comes after this, fails when the server waits for the gate."""
    monkeypatch.setattr(student_changes, "LAST_OPENING_S", 0.1)
    workshop.gate.clear()
    served = start_pool({"first": ()}, config=CONFIG, opener=workshop)
    assert admin(served, "POST", body={"folder": str(folder)}).status_code == 202
    assert until(lambda: workshop.num_called == 1)


def test_memory_is_given_back_where_the_library_can(monkeypatch: pytest.MonkeyPatch) -> None:
    give_memory_back()
    for failure in (TypeError, OSError):
        monkeypatch.setattr(ctypes, "CDLL", Mock(side_effect=failure))
        give_memory_back()


def test_failed_student_can_be_dismissed(served: Served, workshop: Workshop, folder: Path) -> None:
    workshop.failure = ConfigError("no")
    admin(served, "POST", body={"folder": str(folder)})
    assert until(lambda: listed(served)["third"] == "failed")
    assert admin(served, "DELETE", "/third").status_code == 202
    assert "third" not in listed(served)


def test_drained_student_finishes_and_gets_nothing_new(served: Served) -> None:
    body = SLOW | {"model": "first", "max_tokens": 20}
    with served.http.stream("POST", "/v1/completions", json=body) as stream:
        assert admin(served, "POST", "/first/drain").json()["status"] == "draining"
        assert served.chat("hello").headers["x-fenhe-student"] == "second"
        response = served.chat("hello", model="first")
        assert (response.status_code, "draining" in response.json()["error"]["message"]) == (503, True)
        raw = b"".join(stream.iter_raw())
    assert events_of(raw)[-1] == "[DONE]"
    assert listed(served) == {"first": "draining", "second": "ready"}
    assert served.http.get("/readyz").status_code == 200


def test_resumed_student_gets_requests_again(served: Served) -> None:
    admin(served, "POST", "/first/drain")
    assert served.chat("hello", model="first").status_code == 503
    assert admin(served, "POST", "/first/resume").json()["status"] == "ready"
    assert served.chat("hello", model="first").status_code == 200


def test_student_that_is_being_removed_is_not_resumed(start_pool: StartPool) -> None:
    served = start_pool({"first": (), "second": ()}, config=ServerConfig(admin=CONFIG.admin, grace_s=60))
    with served.http.stream("POST", "/v1/completions", json=SLOW | {"model": "first"}):
        admin(served, "POST", "/first/drain")
        admin(served, "DELETE", "/first")
        assert admin(served, "POST", "/first/resume").status_code == 404
        assert listed(served) == {"second": "ready", "first": "stopping"}
        text = served.http.get("/metrics").text
    assert 'vllm:num_requests_running{engine="0",model_name="first"} 1.0' in text
    assert until(lambda: listed(served) == {"second": "ready"})


def test_busy_student_is_not_removed_before_it_is_drained(served: Served) -> None:
    with served.http.stream("POST", "/v1/completions", json=SLOW | {"model": "first"}):
        response = admin(served, "DELETE", "/first")
        assert response.status_code == 400
        assert "drain" in response.json()["error"]["message"]
        assert listed(served)["first"] == "ready"


@pytest.mark.parametrize("is_stream", [False, True])
def test_removal_ends_what_runs_when_the_grace_is_over(served: Served, is_stream: bool) -> None:
    body = SLOW | {"model": "first", "stream": is_stream}
    answers: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: answers.append(served.post("/v1/completions", body)))
    thread.start()
    assert until(lambda: served.engines["first"].status().num_running == 1)
    admin(served, "POST", "/first/drain")
    response = admin(served, "DELETE", "/first")
    assert (response.status_code, response.json()["status"]) == (202, "stopping")
    assert listed(served)["first"] == "stopping"
    thread.join(10)
    (answer,) = answers
    error = events_of(answer.content)[-1]["error"] if is_stream else answer.json()["error"]
    assert error["code"] == "stopping"
    assert until(lambda: list(listed(served)) == ["second"])
    assert served.chat("hello", model="first").status_code == 404


def test_removal_lets_short_work_finish(start_pool: StartPool, workshop: Workshop) -> None:
    config = ServerConfig(admin=CONFIG.admin, grace_s=10)
    quick = Line(pieces=("x",) * 10, delay_s=0.02)
    served = start_pool({"first": (), "second": ()}, config=config, opener=workshop, first={"script": {"slow": quick}})
    with served.http.stream("POST", "/v1/completions", json=SLOW | {"model": "first"}) as stream:
        admin(served, "POST", "/first/drain")
        assert admin(served, "DELETE", "/first").status_code == 202
        raw = b"".join(stream.iter_raw())
    assert events_of(raw)[-1] == "[DONE]"
    assert until(lambda: "first" not in listed(served))


def test_last_student_may_go_and_another_come(served: Served, folder: Path) -> None:
    for name in ("first", "second"):
        assert admin(served, "DELETE", f"/{name}").status_code == 202
    assert until(lambda: listed(served) == {})
    response = served.http.get("/readyz")
    assert (response.status_code, response.json()["status"]) == (503, "empty")
    assert served.http.get("/health").status_code == 200
    assert served.http.get("/version").json()["student"] is None
    assert served.client.models.list().data == []
    assert served.chat("hello").status_code == 503
    assert served.post("/v1/completions", {"model": "auto", "prompt": [1]}).status_code == 503
    assert served.post("/tokenize", {"prompt": "x"}).status_code == 503
    assert served.http.get("/metrics").status_code == 200
    admin(served, "POST", body={"folder": str(folder)})
    assert until(lambda: listed(served).get("third") == "ready")
    assert served.chat("hello").status_code == 200


UNKNOWN = ["DELETE /nobody", "POST /nobody/drain", "POST /nobody/resume"]
UNKNOWN += ["POST /first/explode", "GET /first/drain/more", "DELETE /first/drain/more", "DELETE /first/more"]


@pytest.mark.parametrize(("method", "path"), [case.split() for case in UNKNOWN])
def test_unknown_student_is_not_found(served: Served, method: str, path: str) -> None:
    assert admin(served, method, path).status_code == 404


def test_removed_student_leaves_the_metrics(served: Served) -> None:
    assert served.chat("hello", model="first").status_code == 200
    assert "fenhe_route_decisions_total{" in served.http.get("/metrics").text
    admin(served, "DELETE", "/first")
    assert until(lambda: "first" not in listed(served))
    text = served.http.get("/metrics").text
    assert 'fenhe_engine_healthy{engine="0",model_name="second"} 1.0' in text
    assert '"first"' not in text


def test_removed_student_gives_its_memory_back(served: Served, workshop: Workshop, folder: Path) -> None:
    admin(served, "POST", body={"folder": str(folder)})
    assert until(lambda: listed(served).get("third") == "ready")
    assert served.chat("hello", model="third", stream=True).status_code == 200
    (engine,) = workshop.engines
    admin(served, "DELETE", "/third")
    assert until(lambda: "third" not in listed(served))
    assert until(lambda: engine() is None)
