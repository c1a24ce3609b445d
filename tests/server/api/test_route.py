"""`POST /v1/route`: the decision without an answer."""

from typing import Any

import pytest

from tests.server.conftest import SURE, Served, Start


def test_route_tells_the_decision_and_generates_nothing(served: Served) -> None:
    num_before = len(served.engine.submitted)
    body = served.route("do some math").json()
    assert body.pop("decision_us") > 0
    probabilities = body.pop("probabilities")
    assert probabilities["math"] == SURE
    assert sum(probabilities.values()) == pytest.approx(1)
    assert body == {
        "student": "tiny",
        "path": "shallow",
        "head": "exact",
        "task": "math",
        "language": "en",
        "confidence": SURE,
        "reason": "task",
        "num_prompt_tokens": len("user\ndo some math\nassistant\n") + 3,
        "fallbacks": [],
        "skipped": {},
    }
    assert len(served.engine.submitted) == num_before


@pytest.mark.parametrize(
    ("fields", "path", "num_tokens"),
    [
        ({"prompt": "math"}, "shallow", 4),
        ({"prompt": list(b"math")}, "shallow", 4),
        ({"prompt": ["hello", "math"]}, "full", 5),
        ({"prompt": "math", "model": "tiny:full"}, "full", 4),
        ({"prompt": "x", "model": "tiny", "fenhe": {"task": "math"}}, "shallow", 1),
    ],
)
def test_route_takes_prompts_as_completions_do(
    served: Served, fields: dict[str, Any], path: str, num_tokens: int
) -> None:
    body = served.post("/v1/route", fields).json()
    assert (body["path"], body["num_prompt_tokens"]) == (path, num_tokens)


@pytest.mark.parametrize("fields", [{"model": "tiny:full"}, {"fenhe": {"task": "math"}}])
def test_route_without_classifying_has_no_probabilities(served: Served, fields: dict[str, Any]) -> None:
    body = served.route("math", **fields).json()
    assert (body["probabilities"], body["confidence"]) == (None, None)


def test_route_agrees_with_what_is_generated(served: Served) -> None:
    for prompt in ("math", "some fact", "hello", "legal", "math " * 40, "kaboom"):
        headers = served.chat(prompt).headers
        body = served.route(prompt).json()
        for name in ("student", "path", "task", "reason"):
            assert headers[f"x-fenhe-{name}"] == body[name], prompt


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 400, "prompt"),
        ({"prompt": "x", "messages": [{"role": "user", "content": "x"}]}, 400, "prompt"),
        ({"prompt": ""}, 400, "prompt"),
        ({"prompt": []}, 400, "prompt"),
        ({"prompt": ["a", 1]}, 400, "prompt"),
        ({"prompt": [999]}, 400, "prompt"),
        ({"prompt": "x", "model": "nobody"}, 404, "model"),
        ({"prompt": "x", "temperatur": 1}, 400, "temperatur"),
        ({"messages": [{"role": "user"}]}, 400, "messages[0].content"),
    ],
)
def test_route_refuses_by_name(served: Served, body: dict[str, Any], status: int, param: str) -> None:
    response = served.post("/v1/route", body)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)


def test_route_answers_while_loading(start: Start) -> None:
    served = start(is_loaded=False)
    assert served.route("math").json()["path"] == "shallow"


def test_route_of_an_unhealthy_pool_is_unavailable(start: Start) -> None:
    served = start()
    served.engine.sicken("two steps failed")
    response = served.route("math")
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")
    assert "two steps failed" in response.json()["error"]["message"]


def test_route_explains_which_words_the_verdict_hangs_on(served: Served) -> None:
    reply = served.route("do some math now", explain=True).json()
    words = {"do some math now"[one["start"] : one["end"]]: one for one in reply["words"]}
    assert list(words) == ["do", "some", "math", "now"]
    assert words["math"]["task"] == "general"
    assert words["math"]["pull"] > 0.5
    assert (words["now"]["task"], words["now"]["pull"]) == ("math", 0)


def test_route_explains_nothing_unless_asked(served: Served) -> None:
    assert "words" not in served.route("do some math now").json()
    assert served.route("math", explain=True).json()["words"] == []
