"""What the soak's client accepts, and what it reports."""

import json
from typing import Any

import pytest

from loadtest.soak_client import StreamRecord, body_problem
from loadtest.soak_kinds import CHAT, COUNT, MESSAGES, Sent

DONE = "[DONE]"
ERROR = json.dumps({"error": {"message": "x"}})


def chunk(index: int = 0, reason: str | None = None) -> str:
    return json.dumps({"choices": [{"index": index, "delta": {}, "finish_reason": reason}]})


def event(kind: str) -> str:
    return json.dumps({"type": kind})


def judged(*data: str, is_typed: bool = False, may_break: bool = False) -> Any:
    stream = StreamRecord()
    for one in data:
        stream.note(one)
    return stream.problem(is_typed=is_typed, may_break=may_break)


@pytest.mark.parametrize(
    "data",
    [
        [chunk(), chunk(reason="stop"), DONE],
        [chunk(0, "stop"), chunk(1, "length"), DONE],
    ],
)
def test_stream_with_one_end_is_right(data: list[str]) -> None:
    assert judged(*data) is None


@pytest.mark.parametrize(
    "data",
    [
        [],
        [chunk()],
        [chunk(), DONE],
        [chunk(reason="stop")],
        [chunk(reason="stop"), chunk(reason="stop"), DONE],
        [chunk(0, "stop"), chunk(1), DONE],
        [chunk(reason="stop"), DONE, DONE],
        [chunk(), ERROR],
    ],
)
def test_stream_without_exactly_one_end_is_blamed(data: list[str]) -> None:
    assert judged(*data) is not None


def test_stream_that_may_break_breaks_once() -> None:
    assert judged(chunk(), ERROR, may_break=True) is None
    assert judged(ERROR, ERROR, may_break=True) is not None


def test_message_ends_with_its_last_event() -> None:
    assert judged(event("message_start"), event("message_stop"), is_typed=True) is None
    assert judged(event("message_start"), event("message_delta"), is_typed=True) is not None
    assert judged(event("message_start"), ERROR, is_typed=True) is not None


@pytest.mark.parametrize(
    ("path", "reply", "is_right"),
    [
        (MESSAGES, {"stop_reason": "end_turn"}, True),
        (MESSAGES, {"stop_reason": None}, False),
        (COUNT, {"input_tokens": 5}, True),
        (COUNT, {"input_tokens": 0}, False),
        (CHAT, {"choices": [{"finish_reason": "stop"}]}, True),
        (CHAT, {"choices": []}, False),
        ("/admin/reload", {"changed": []}, True),
    ],
)
def test_reply_is_judged_by_its_endpoint(path: str, reply: dict[str, Any], is_right: bool) -> None:
    sent = Sent(path=path, body=b"{}")
    assert (body_problem(json.dumps(reply).encode(), 200, sent) is None) == is_right


@pytest.mark.parametrize("path", [MESSAGES, CHAT])
def test_error_has_the_fields_of_its_endpoint(path: str) -> None:
    sent = Sent(path=path, body=b"{}")
    short = json.dumps({"error": {"message": "x", "type": "y"}}).encode()
    assert (body_problem(short, 400, sent) is None) == (path == MESSAGES)
    assert body_problem(b'{"error": "x"}', 400, sent) is not None


def test_response_ends_with_one_of_its_events() -> None:
    assert judged(event("response.created"), event("response.incomplete"), is_typed=True) is None
    assert judged(event("response.created"), is_typed=True) is not None
    assert judged(event("response.failed"), is_typed=True) is not None
    assert judged(event("response.failed"), is_typed=True, may_break=True) is None
