"""What the soak's client accepts, and what it reports."""

import json
from typing import Any

import pytest

from loadtest.soak_client import StreamRecord

DONE = "[DONE]"
ERROR = json.dumps({"error": {"message": "x"}})


def chunk(index: int = 0, reason: str | None = None) -> str:
    return json.dumps({"choices": [{"index": index, "delta": {}, "finish_reason": reason}]})


def event(kind: str) -> str:
    return json.dumps({"type": kind})


def judged(*data: str, is_response: bool = False, may_break: bool = False) -> Any:
    stream = StreamRecord()
    for one in data:
        stream.note(one)
    return stream.problem(is_response=is_response, may_break=may_break)


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


def test_response_ends_with_one_of_its_events() -> None:
    assert judged(event("response.created"), event("response.incomplete"), is_response=True) is None
    assert judged(event("response.created"), is_response=True) is not None
    assert judged(event("response.failed"), is_response=True) is not None
    assert judged(event("response.failed"), is_response=True, may_break=True) is None
