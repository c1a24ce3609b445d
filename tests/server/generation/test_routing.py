"""How a request gets to its path, as clients see it: preferences, headers, faults of the classifier."""

from typing import Any

import openai
import pytest

from server.settings.config import RouterConfig
from tests.server.conftest import Served, Start, events_of, until

ROUTED = {"task": "math", "path": "shallow", "confidence": "0.900", "reason": "task", "student": "tiny"}


def told(headers: Any) -> dict[str, str]:
    """What the x-fenhe-... headers say about the route. What it costs follows from the path."""
    prefix = "x-fenhe-"
    said = {name.removeprefix(prefix): value for name, value in headers.items() if name.startswith(prefix)}
    assert said.pop("cache") == "bypass"
    assert said.pop("compute") == {"shallow": "0.56", "full": "1.00"}[said["path"]]
    return said


@pytest.mark.parametrize("is_stream", [False, True])
def test_chat_is_routed_by_its_task(served: Served, is_stream: bool) -> None:
    response = served.chat("do some math", stream=is_stream)
    assert told(response.headers) == ROUTED
    assert served.engine.submitted[-1].path == "shallow"
    bodies = events_of(response.content)[:-1] if is_stream else [response.json()]
    assert bodies[-1]["choices"][0]["fenhe"] == {"path": "shallow"}
    assert {body["model"] for body in bodies} == {"tiny"}


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("prompt", ["math", list(b"math"), ["math", "math too"], [list(b"math"), list(b"math")]])
def test_completion_is_routed_by_its_prompts(served: Served, prompt: Any, is_stream: bool) -> None:
    response = served.post("/v1/completions", {"model": "tiny", "prompt": prompt, "stream": is_stream})
    assert told(response.headers) == ROUTED
    assert "math" in served.classifier.asked[-1].last


def test_unsure_takes_the_full_path(served: Served) -> None:
    headers = told(served.chat("hello").headers)
    assert (headers["task"], headers["path"], headers["reason"]) == ("general", "full", "general")


def test_last_user_turn_decides(served: Served) -> None:
    messages = [
        {"role": "system", "content": "you know about legal things"},
        {"role": "user", "content": "math"},
        {"role": "assistant", "content": "a fact"},
        {"role": "user", "content": [{"type": "text", "text": "hello"}]},
    ]
    response = served.post("/v1/chat/completions", {"model": "auto", "messages": messages})
    assert response.headers["x-fenhe-task"] == "general"
    asked = served.classifier.asked[-1]
    assert (asked.last, asked.earlier, asked.system) == ("hello", ("math",), ("you know about legal things",))


@pytest.mark.parametrize(
    ("fields", "headers", "expected"),
    [
        ({"fenhe": {"task": "math"}}, {}, ("math", "shallow", "wished_task")),
        ({}, {"x-fenhe-task": "math"}, ("math", "shallow", "wished_task")),
        ({}, {"x-fenhe-task": "MATH"}, ("math", "shallow", "wished_task")),
        ({"fenhe": {"task": "math"}}, {"x-fenhe-task": "math"}, ("math", "shallow", "wished_task")),
        ({"fenhe": {"path": "shallow"}}, {}, ("general", "shallow", "wished_path")),
        ({"model": "tiny:shallow"}, {}, ("general", "shallow", "wished_path")),
        ({"model": "tiny:shallow", "fenhe": {"path": "shallow"}}, {}, ("general", "shallow", "wished_path")),
        ({"model": "tiny:full", "fenhe": {"task": "math"}}, {}, ("math", "full", "wished_path")),
        ({"fenhe": {"quality": "full"}}, {}, ("general", "full", "wished_quality")),
        ({"fenhe": {"quality": "full", "task": "math"}}, {}, ("math", "full", "wished_quality")),
    ],
)
def test_wishes_decide_without_the_classifier(
    served: Served, fields: dict[str, Any], headers: dict[str, str], expected: tuple[str, str, str]
) -> None:
    num_asked = len(served.classifier.asked)
    response = served.chat("some fact", headers=headers, **fields)
    found = told(response.headers)
    assert (found["task"], found["path"], found["reason"]) == expected
    assert "confidence" not in found
    assert len(served.classifier.asked) == num_asked


@pytest.mark.parametrize(
    ("fields", "headers", "status", "param"),
    [
        ({}, {"x-fenhe-task": "cooking"}, 400, "x-fenhe-task"),
        ({}, {"x-fenhe-task": ""}, 400, "x-fenhe-task"),
        ({"fenhe": {"task": "math"}}, {"x-fenhe-task": "legal"}, 400, "fenhe.task"),
        ({"model": "tiny:shallow", "fenhe": {"path": "full"}}, {}, 400, "fenhe.path"),
        ({"model": "tiny:shallow", "fenhe": {"quality": "full"}}, {}, 400, "fenhe.quality"),
        ({"fenhe": {"path": "shallow", "quality": "full"}}, {}, 400, "fenhe.quality"),
        ({"fenhe": {"quality": "full", "while_loading": "degrade"}}, {}, 400, "fenhe.while_loading"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/route"])
def test_wishes_that_make_no_sense_are_refused(
    served: Served, path: str, fields: dict[str, Any], headers: dict[str, str], status: int, param: str
) -> None:
    text: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}]} if "chat" in path else {"prompt": "x"}
    response = served.post(path, {"model": "auto", **text, **fields}, headers=headers)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)


def test_wish_for_a_path_nobody_has_is_not_found(served: Served) -> None:
    response = served.chat("x", fenhe={"path": "nowhere"})
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")


def test_long_prompt_takes_the_deeper_path(served: Served) -> None:
    headers = told(served.chat("math " * 40).headers)
    assert (headers["path"], headers["reason"]) == ("full", "prompt_length")


def test_quality_bounds_what_a_path_may_lose(served: Served) -> None:
    assert told(served.chat("a fact").headers)["reason"] == "min_quality"
    low = served.chat("a fact", fenhe={"quality": "fast"})
    assert told(low.headers)["path"] == "full"


def test_load_steps_down_as_far_as_the_quality_allows(start: Start) -> None:
    served = start(router=RouterConfig(busy_at=0.001))
    with served.http.stream("POST", "/v1/completions", json={"model": "tiny:full", "prompt": "slow", "stream": True}):
        fast = told(served.chat("a fact", fenhe={"quality": "fast"}).headers)
        balanced = told(served.chat("a fact").headers)
    assert (fast["path"], fast["reason"]) == ("shallow", "load")
    assert (balanced["path"], balanced["reason"]) == ("full", "min_quality")


def test_classifier_fault_is_the_full_path_and_no_error(served: Served) -> None:
    response = served.chat("kaboom math")
    assert response.status_code == 200
    expected = {"task": "general", "path": "full", "reason": "classifier_unavailable", "student": "tiny"}
    assert told(response.headers) == expected


def test_router_that_is_off_asks_nobody(start: Start) -> None:
    served = start(router=RouterConfig(enabled=False))
    headers = told(served.chat("math").headers)
    assert (headers["path"], headers["reason"]) == ("full", "router_off")
    assert served.classifier.asked == []
    assert told(served.chat("math", fenhe={"task": "math"}).headers)["path"] == "shallow"


def test_very_long_text_is_classified_beside_the_loop(served: Served) -> None:
    response = served.chat("math " + "x" * 250_000, max_tokens=1)
    assert response.json()["error"]["code"] == "context_length_exceeded"
    assert len(served.classifier.asked[-1].last) == 250_005
    beside = served.classifier.threads[-1]
    served.chat("math")
    assert served.classifier.threads[-1] is not beside


def test_path_header_is_what_really_ran(start: Start) -> None:
    served = start(is_loaded=False)
    served.engine.load(3)
    response = served.chat("hello", fenhe={"while_loading": "degrade"})
    headers = told(response.headers)
    assert (headers["path"], headers["reason"]) == ("shallow", "general")


def test_official_client_sends_wishes_and_reads_headers(served: Served) -> None:
    messages: Any = [{"role": "user", "content": "hello"}]
    raw = served.client.chat.completions.with_raw_response.create(
        model="auto", messages=messages, extra_body={"fenhe": {"task": "math", "quality": "balanced"}}
    )
    assert told(raw.headers)["reason"] == "wished_task"
    assert raw.parse().choices[0].message.content == "Hello, world!"
    with served.client.chat.completions.with_streaming_response.create(
        model="auto", messages=messages, stream=True, extra_headers={"x-fenhe-task": "math"}
    ) as response:
        assert told(response.headers)["path"] == "shallow"
        texts = [chunk.choices[0].delta.content or "" for chunk in response.parse()]
    assert "".join(texts) == "Hello, world!"
    with pytest.raises(openai.BadRequestError, match=r"fenhe\.task"):
        served.client.chat.completions.create(
            model="auto", messages=messages, extra_body={"fenhe": {"task": "cooking"}}
        )


def test_full_path_and_full_quality_go_together(served: Served) -> None:
    assert told(served.chat("x", model="tiny:full", fenhe={"quality": "full"}).headers)["path"] == "full"


@pytest.mark.parametrize(("second", "status"), [("legal", 400), ("MATH", 200)])
def test_task_headers_that_differ_are_refused(served: Served, second: str, status: int) -> None:
    headers = [("x-fenhe-task", "math"), ("x-fenhe-task", second)]
    assert served.http.post("/v1/route", json={"prompt": "x"}, headers=headers).status_code == status


@pytest.mark.parametrize("prompts", [["math", "hello"], ["hello", "math"], ["math", "math " * 40]])
def test_deepest_path_of_several_prompts_is_taken(served: Served, prompts: list[str]) -> None:
    response = served.post("/v1/completions", {"model": "tiny", "prompt": prompts})
    assert told(response.headers)["path"] == "full"
    assert served.post("/v1/route", {"prompt": prompts}).json()["path"] == "full"


@pytest.mark.parametrize(
    ("field", "allowed"),
    [
        ("task", "general, math, legal, fact, creative"),
        ("quality", "fast, balanced, full"),
        ("while_loading", "wait, degrade"),
    ],
)
def test_wish_outside_its_words_is_told_them(served: Served, field: str, allowed: str) -> None:
    error = served.chat("x", fenhe={field: "cooking"}).json()["error"]
    assert error["param"] == f"fenhe.{field}"
    assert all(word in error["message"] for word in ("cooking", *allowed.split(", ")))


def test_log_line_tells_task_reason_and_confidence(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="server.request_log"):
        served.chat("math")
        served.route("math")
        assert until(lambda: len(caplog.messages) >= 2)
    for line in caplog.messages:
        assert "student=tiny path=shallow task=math reason=task confidence=0.9" in line
