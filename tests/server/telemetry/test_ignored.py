"""What was ignored is counted by known names, and logged with the request's id."""

import logging

import pytest

from tests.server.conftest import Served


def counts(served: Served) -> dict[str, float]:
    start = 'fenhe_ignored_fields_total{field="'
    lines = [line for line in served.http.get("/metrics").text.splitlines() if line.startswith(start)]
    pairs = [line.removeprefix(start).split('"} ') for line in lines]
    return {name: float(value) for name, value in pairs}


def test_ignored_fields_are_counted_once_a_request(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    before = counts(served)
    answer = {"role": "assistant", "content": "a", "parsed": None, "made_up": 1, "made_up_too": 2}
    messages = [{"role": "user", "content": "hi"}, answer, answer, {"role": "user", "content": "more"}]
    body = {"model": "auto", "messages": messages, "store": True, "reasoning_effort": "low", "brand_new": None}
    with caplog.at_level(logging.DEBUG, logger="server.telemetry.ignored"):
        reply = served.post("/v1/chat/completions", body, headers={"x-request-id": "mine"})
    assert reply.status_code == 200
    names = ("store", "reasoning_effort", "parsed", "other")
    assert counts(served) == before | {name: before.get(name, 0) + 1 for name in names}
    (line,) = [record.getMessage() for record in caplog.records if record.name == "server.telemetry.ignored"]
    assert "id=mine num=9" in line
    assert "messages[1].made_up" in line


def test_request_without_such_fields_is_not_logged(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    before = counts(served)
    with caplog.at_level(logging.DEBUG, logger="server.telemetry.ignored"):
        assert served.chat("hello").status_code == 200
    assert counts(served) == before
    assert not [record for record in caplog.records if record.name == "server.telemetry.ignored"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"model": "auto", "prompt": "x", "metadata": {"a": 1}}),
        ("/v1/route", {"prompt": "x", "user": "me"}),
        ("/tokenize", {"prompt": "x", "user": "me"}),
        ("/detokenize", {"tokens": [1], "user": "me"}),
    ],
)
def test_every_endpoint_reports_what_it_ignored(served: Served, path: str, body: dict[str, object]) -> None:
    before = counts(served)
    assert served.post(path, body).status_code == 200
    name = list(body)[-1]
    assert counts(served) == before | {name: before.get(name, 0) + 1}
