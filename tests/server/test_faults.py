"""What goes wrong: the engine refuses or fails, the client leaves, bodies are broken. Each ends in one clear answer."""

import hashlib
import json
import logging
import socket
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from engines.scripted import Line
from engines.sequence import GenerationRequest, SamplingParams
from models.errors import PathLoading, QueueFull, StepFailed
from server.settings.config import KeysConfig, Limits, ServerConfig
from tests.server.conftest import (
    SCRIPT,
    Served,
    Start,
    TinyStudent,
    events_of,
    make_engine,
    open_scripted,
    run_server,
    until,
)

BROKEN = Line(pieces=(), error=StepFailed("the forward pass failed"))
BROKEN_LATER = Line(pieces=("some ", "text"), delay_s=0.05, error=StepFailed("the forward pass failed"))


def post_and_leave(served: Served, body: dict[str, Any]) -> None:
    """Send a request, wait until the engine has it, and hang up without reading."""
    num_before = len(served.engine.submitted)
    data = json.dumps({"model": "auto", **body}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(data)}\r\n\r\n"
    address = served.url.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1]))) as connection:
        connection.sendall(head.encode() + data)
        assert until(lambda: len(served.engine.submitted) > num_before)


def test_refusal_of_the_engine_keeps_its_status_and_retry_after(start: Start) -> None:
    served = start({"full house": Line(refusal=QueueFull("too many", retry_after_s=2.2))})
    response = served.chat("full house", stream=True)
    assert response.status_code == 429
    assert response.headers["retry-after"] == "3"
    error = response.json()["error"]
    assert error == {"message": "too many", "type": "rate_limit_error", "param": None, "code": "queue_full"}


def test_refusal_of_a_later_choice_aborts_the_earlier_ones(start: Start) -> None:
    served = start(max_running=1, max_waiting=1)
    with pytest.raises(openai.RateLimitError):
        served.client.chat.completions.create(model="auto", messages=[{"role": "user", "content": "slow"}], n=3)
    assert until(lambda: served.engine.status().num_running + served.engine.status().num_waiting == 0)
    assert len(served.engine.aborted) == len(served.engine.submitted)
    assert served.chat("hello").status_code == 200


def test_loading_path_is_unavailable_with_retry_after(start: Start) -> None:
    served = start({"early": Line(refusal=PathLoading("the path is loading"))})
    response = served.chat("early")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "path_loading")
    assert int(response.headers["retry-after"]) >= 1


@pytest.mark.parametrize("is_stream", [False, True])
def test_failure_before_the_first_token_has_its_own_status(start: Start, is_stream: bool) -> None:
    served = start({"broken": BROKEN})
    response = served.chat("broken", stream=is_stream)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "step_failed")


def test_failure_inside_a_stream_is_an_error_event_and_the_end(start: Start) -> None:
    served = start({"broken": BROKEN_LATER})
    response = served.chat("broken", stream=True)
    assert response.status_code == 200
    *_, before, last = events_of(response.content)
    assert before["choices"][0]["delta"]["content"] == "text"
    assert last["error"]["code"] == "step_failed"
    assert last["error"]["type"] == "server_error"


def test_failure_inside_a_stream_raises_in_the_official_client(start: Start) -> None:
    served = start({"broken": BROKEN_LATER})
    stream = served.client.chat.completions.create(
        model="auto", messages=[{"role": "user", "content": "broken"}], stream=True
    )
    with pytest.raises(openai.APIError, match="the forward pass failed"):
        list(stream)


def test_failure_of_one_choice_aborts_the_others(start: Start) -> None:
    served = start({"broken": BROKEN, "slow": Line(pieces=("x",) * 500, delay_s=0.02)})
    response = served.post("/v1/completions", {"model": "auto", "prompt": ["slow", "broken"], "max_tokens": 400})
    assert response.status_code == 500
    assert until(lambda: served.engine.status().num_running == 0)


class Panic(BaseException):
    """As Rust libraries raise: no Exception."""


@pytest.mark.parametrize("kind", [ZeroDivisionError, Panic])
def test_unforeseen_exception_is_logged_and_answered_without_details(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: type[BaseException]
) -> None:
    served = start()

    def explode(request: object) -> None:
        raise kind("secret path /home/x")

    monkeypatch.setattr(served.engine, "submit", explode)
    with caplog.at_level(logging.ERROR):
        response = served.chat("hello")
    assert response.status_code == 500
    assert "secret" not in response.text
    assert response.json()["error"]["code"] == "internal_error"
    assert any(record.exc_info for record in caplog.records)
    monkeypatch.undo()
    assert served.chat("hello").status_code == 200


@pytest.mark.parametrize("is_stream", [False, True])
def test_client_gone_aborts_its_sequences(served: Served, is_stream: bool) -> None:
    num_aborted = len(served.engine.aborted)
    post_and_leave(served, {"messages": [{"role": "user", "content": "slow"}], "n": 2, "stream": is_stream})
    assert until(lambda: len(served.engine.aborted) >= num_aborted + 2)
    assert until(lambda: served.engine.status().num_running == 0)
    assert served.student.bridge.num_streams == 0


def test_client_gone_inside_a_stream_aborts(served: Served) -> None:
    with served.client.chat.completions.create(
        model="auto", messages=[{"role": "user", "content": "slow"}], stream=True
    ) as stream:
        next(iter(stream))
        assert served.engine.status().num_running == 1
    assert until(lambda: served.engine.status().num_running == 0)


def test_engine_stop_ends_waiting_clients(start: Start) -> None:
    served = start(is_loaded=False)
    with served.http.stream("GET", "/startup") as probe:
        assert probe.status_code == 200
    stream_body = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}
    post_and_leave(served, {"messages": stream_body["messages"]})
    served.engine.stop(0.0)
    response = served.chat("hello")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_unhealthy")


def test_late_answer_is_a_timeout_and_aborted(start: Start) -> None:
    served = start(limits=Limits(request_timeout_s=0.2))
    response = served.chat("slow")
    assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert until(lambda: served.engine.status().num_running == 0)


def test_too_many_open_requests_are_refused(start: Start) -> None:
    served = start(limits=Limits(max_requests=1))
    body = {"model": "auto", "messages": [{"role": "user", "content": "slow"}], "stream": True}
    with served.http.stream("POST", "/v1/chat/completions", json=body):
        response = served.chat("hello")
    assert (response.status_code, response.json()["error"]["code"]) == (429, "queue_full")
    assert until(lambda: served.chat("hello").status_code == 200)


@pytest.mark.parametrize(
    ("body", "kind", "status", "code"),
    [
        (b"{", "application/json", 400, "invalid_request"),
        (b"", "application/json", 400, "invalid_request"),
        (b"[]", "application/json", 400, "invalid_request"),
        (b'{"model": NaN}', "application/json", 400, "invalid_request"),
        (b'{"model": "\xff"}', "application/json", 400, "invalid_request"),
        (b'{"model": 1, "x": "\xff"}', "application/json", 400, "invalid_request"),
        (b"[" * 100_000, "application/json", 400, "invalid_request"),
        (b"{}", "text/plain", 415, "unsupported_media_type"),
        (b"{}", "", 415, "unsupported_media_type"),
        (b" " * (2 * 1024 * 1024 + 1), "application/json", 413, "request_too_large"),
    ],
)
def test_broken_bodies_are_refused_in_the_api_s_shape(
    served: Served, body: bytes, kind: str, status: int, code: str
) -> None:
    response = served.http.post("/v1/chat/completions", content=body, headers={"content-type": kind})
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code)
    assert set(error) == {"message", "type", "param", "code"}


def test_body_without_length_is_bounded_while_it_is_read(served: Served) -> None:
    parts = (b" " * 65536 for _ in range(40))
    response = served.http.post("/v1/completions", content=parts, headers={"content-type": "application/json"})
    assert response.status_code == 413


def test_body_that_never_comes_is_given_up(start: Start) -> None:
    served = start(limits=Limits(body_timeout_s=0.2))
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.settimeout(10)
        connection.sendall(
            b"POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{"
        )
        assert connection.recv(65536).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v2/nothing", 404), ("PUT", "/v1/models", 405)])
def test_unknown_routes_are_refused_in_the_api_s_shape(served: Served, method: str, path: str, status: int) -> None:
    response = served.http.request(method, path)
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_request_id_is_taken_and_returned(served: Served) -> None:
    response = served.chat("hello", stream=True)
    assert len(response.headers["x-request-id"]) == 32
    response = served.http.get("/v1/models", headers={"x-request-id": "my-id.1:2"})
    assert response.headers["x-request-id"] == "my-id.1:2"


@pytest.mark.parametrize("bad", ["a b", "x" * 129, "ünicode"])
def test_request_id_that_could_break_logs_is_replaced(served: Served, bad: str) -> None:
    response = served.http.get("/v1/models", headers=[(b"x-request-id", bad.encode())])
    assert response.status_code == 200
    assert response.headers["x-request-id"] != bad
    assert response.headers["x-request-id"].isalnum()


def test_request_id_in_use_gets_its_own_sequences(served: Served) -> None:
    headers = {"x-request-id": "twice"}
    body = {"model": "auto", "messages": [{"role": "user", "content": "slow"}], "stream": True}
    with served.http.stream("POST", "/v1/chat/completions", json=body, headers=headers):
        second = served.post("/v1/completions", {"model": "auto", "prompt": "hi"}, headers=headers)
    assert second.status_code == 200
    assert second.headers["x-request-id"] == "twice"
    assert second.json()["id"].startswith("cmpl-twice.")


@pytest.fixture
def tenants(student: TinyStudent) -> Iterator[Served]:
    """A server with the keys `a` and `b`, of two tenants."""
    keys = KeysConfig(sha256=tuple(hashlib.sha256(key).hexdigest() for key in (b"a", b"b")))
    with run_server([open_scripted(student, make_engine(SCRIPT))], ServerConfig(keys=keys)) as running:
        yield running


def test_request_id_of_another_tenant_shows_in_nothing(tenants: Served) -> None:
    def ask(key: str) -> str:
        headers = {"authorization": f"Bearer {key}", "x-request-id": "order-17"}
        response = tenants.post("/v1/completions", {"model": "auto", "prompt": "hi"}, headers=headers)
        assert (response.status_code, response.headers["x-request-id"]) == (200, "order-17")
        return str(response.json()["id"])

    alone = {key: ask(key) for key in "ab"}
    body = {"model": "auto", "prompt": "slow", "stream": True, "max_tokens": 200}
    headers = {"authorization": "Bearer a", "x-request-id": "order-17"}
    with tenants.http.stream("POST", "/v1/completions", json=body, headers=headers) as response:
        parts = response.iter_raw()
        next(parts)
        assert ask("b") == alone["b"]
        assert ask("a").startswith(f"{alone['a']}.")


def test_request_id_may_come_again_while_the_first_is_being_aborted(start: Start) -> None:
    served = start(is_loaded=False)
    served.student.bridge.open(
        [GenerationRequest(id="again-0", prompt_token_ids=(1,), path="full", sampling=SamplingParams(max_tokens=1))]
    )
    assert served.student.bridge.has_sequences("again")
    assert not served.student.bridge.has_sequences("aga")


@pytest.mark.parametrize("is_stream", [False, True])
def test_header_that_cannot_be_sent_is_a_500_with_a_body(start: Start, is_stream: bool) -> None:
    served = start()
    served.student.name = "two\nlines"
    response = served.chat("hello", stream=is_stream)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
    assert 'status="500"' in served.http.get("/metrics").text
