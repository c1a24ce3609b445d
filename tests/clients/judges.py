"""What is right in what a program reports, by capability; the same for every client."""

from collections.abc import Callable, Mapping
from typing import Any

import jsonschema

from tests.clients.prompts import BROKEN, FORECAST

Result = Mapping[str, Any]

CALL = ["get_weather", {"city": "Oslo"}]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "city": {"type": "string", "maxLength": 20},
    },
    "required": ["name", "age", "city"],
    "additionalProperties": False,
}
STATUSES = {"unknown_model": 404, "wrong_key": 401, "too_long": 400, "overloaded": 429}
"""What breaks in the middle has begun with 200; clients give it that, another number or none."""
TOLD = {
    "unknown_model": ("no-such-model",),
    "wrong_key": ("API key",),
    "too_long": ("maximum context length is", "ran out of room in the model's context window"),
    "overloaded": ("sequences are waiting",),
    "broken": (BROKEN, 'terminal state "response.failed"'),
}
"""What each says: words of the server's, or those in which a client says the same."""
ENDS = ("stop", "length")


def judge_chat(result: Result) -> None:
    assert result["text"].strip()
    assert result["more"].strip()
    assert_finish_and_usage(result)


def assert_finish_and_usage(result: Result) -> None:
    """Both where the client tells them: None is what it does not."""
    assert result["finish"] in (*ENDS, None)
    if result["usage"] is not None:
        num_prompt_tokens, num_completion_tokens = result["usage"]
        assert num_prompt_tokens > 0
        assert num_completion_tokens > 0


def judge_stream(result: Result) -> None:
    assert len(result["pieces"]) > 1
    assert "".join(result["pieces"]) == result["whole"]
    assert_finish_and_usage(result)


def judge_tools(result: Result) -> None:
    assert result["calls"]
    assert all(calls == [CALL] for calls in result["calls"])
    assert result["texts"]
    assert set(result["texts"]) == {FORECAST}


def judge_structured(result: Result) -> None:
    assert result["values"]
    for value in result["values"]:
        jsonschema.validate(value, PERSON)


def judge_errors(result: Result) -> None:
    """Each error has its status, where the client tells one, and words of the server's that say what to do."""
    if "counted" in result:  # a benchmark, which goes on
        assert result["counted"]
        return
    for name, failure in result.items():
        status = STATUSES.get(name)
        told = [*TOLD[name], *([f" {status} "] if failure["status"] is None else [])]
        assert any(words in failure["message"] for words in told), failure
        assert status is None or failure["status"] in (status, None), failure
    assert result.keys() >= {"unknown_model", "wrong_key", "overloaded"}


def judge_cancel(result: Result) -> None:
    assert result["pieces"]


def judge_scores(result: Result) -> None:
    """None is what a client does not tell."""
    assert len(result["answer"]) > 1
    assert all(score <= 0 and num_alternatives in (3, None) for score, num_alternatives in result["answer"])
    if result["prompt"] is not None:
        assert result["prompt_text"] == "the quick"
        assert result["prompt"][0] is None
        assert all(logprob <= 0 for logprob in result["prompt"][1:])


def judge_load(result: Result) -> None:
    assert not result["failed"], result["failed"]
    assert result["succeeded"] == result["expected"]
    assert all(number > 0 for number in result["tokens"])


JUDGES: Mapping[str, Callable[[Result], None]] = {
    "chat": judge_chat,
    "stream": judge_stream,
    "tools": judge_tools,
    "structured": judge_structured,
    "errors": judge_errors,
    "cancel": judge_cancel,
    "scores": judge_scores,
    "load": judge_load,
}
