"""Several students behind one server: which one answers, and what each probe says of them."""

import asyncio
from typing import Any

import httpx
import pytest

from engines.contract import EngineStatus
from engines.scripted import Line, ScriptedEngine
from models.errors import BadRequest, DeadlineUnreachable, EngineUnhealthy, QueueFull
from server.api.chat import ChatOrder
from server.generation.prompts import Prompt
from server.settings.config import Limits, ServerConfig
from server.students.student import ServedStudent
from tests.server.conftest import CONTEXT_TOKENS, Served, Start, StartPool, events_of, until

BOTH = {"big": (), "maths": ("math",)}
SICK = Line(refusal=EngineUnhealthy("the engine is stopping"))


def answered_by(served: Served, prompt: str = "hello", **fields: Any) -> tuple[str, str]:
    response = served.chat(prompt, **fields)
    assert response.status_code == 200, response.text
    return response.headers["x-fenhe-student"], response.headers["x-fenhe-path"]


@pytest.mark.parametrize(
    ("prompt", "model", "expected"),
    [
        ("hello", "auto", ("big", "full")),
        ("math", "auto", ("maths", "shallow")),
        ("math", "big", ("big", "shallow")),
        ("hello", "maths", ("maths", "full")),
        ("math", "big:full", ("big", "full")),
        ("hello", "maths:shallow", ("maths", "shallow")),
    ],
)
def test_student_is_chosen_by_model_and_task(
    start_pool: StartPool, prompt: str, model: str, expected: tuple[str, str]
) -> None:
    served = start_pool(BOTH)
    response = served.chat(prompt, model=model)
    assert (response.headers["x-fenhe-student"], response.headers["x-fenhe-path"]) == expected
    assert len(served.engines[expected[0]].submitted) == 1
    assert response.json()["model"] == (model if ":" in model else expected[0])


def test_path_wish_alone_still_lets_the_task_choose_the_student(start_pool: StartPool) -> None:
    served = start_pool(BOTH)
    assert answered_by(served, "math", fenhe={"path": "full"}) == ("maths", "full")


def test_unhealthy_student_is_skipped_with_its_reason(start_pool: StartPool) -> None:
    served = start_pool(BOTH)
    served.engines["maths"].sicken("two steps failed")
    assert answered_by(served, "math") == ("big", "shallow")
    assert served.route("math").json()["skipped"] == {"maths": "it is unhealthy: two steps failed"}
    response = served.chat("math", model="maths")
    assert response.status_code == 503
    assert "two steps failed" in response.json()["error"]["message"]


@pytest.mark.parametrize("is_stream", [False, True])
def test_student_that_refuses_at_submit_gives_way(start_pool: StartPool, is_stream: bool) -> None:
    served = start_pool(BOTH, maths={"script": {"math": SICK}})
    response = served.chat("math", stream=is_stream)
    assert response.status_code == 200
    assert (response.headers["x-fenhe-student"], response.headers["x-fenhe-path"]) == ("big", "shallow")
    body = events_of(response.content)[0] if is_stream else response.json()
    assert body["model"] == "big"


def test_student_named_by_the_client_never_gives_way(start_pool: StartPool) -> None:
    served = start_pool(BOTH, maths={"script": {"math": SICK}})
    response = served.chat("math", model="maths")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_unhealthy")
    assert served.engines["big"].submitted == []


def test_fallback_that_cannot_take_over_leaves_the_first_error(start_pool: StartPool) -> None:
    served = start_pool(BOTH, maths={"script": {"math": SICK}}, big={"max_running": 0, "max_waiting": 0})
    response = served.chat("math")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_unhealthy")


def test_loading_student_waits_behind_a_loaded_one(start_pool: StartPool) -> None:
    served = start_pool(BOTH, maths={"is_loaded": False})
    assert answered_by(served, "math") == ("big", "shallow")


def test_server_is_ready_while_any_student_is(start_pool: StartPool) -> None:
    served = start_pool(BOTH, maths={"is_loaded": False})
    body = served.http.get("/readyz").json()
    assert body["status"] == "ready"
    assert [(one["name"], one["status"], one["loaded_share"]) for one in body["students"]] == [
        ("big", "ready", 1.0),
        ("maths", "loading", 0.0),
    ]
    assert {path["student"] for path in body["paths"]} == {"big", "maths"}
    served.engines["big"].sicken("it broke")
    assert served.http.get("/health").status_code == 200
    response = served.http.get("/readyz")
    assert (response.status_code, response.json()["status"], response.json()["error"]) == (503, "loading", None)
    served.engines["maths"].sicken("it broke too")
    response = served.http.get("/health")
    assert response.status_code == 503
    assert response.json()["error"] == "big: it broke; maths: it broke too"


def test_models_list_every_student_and_path(start_pool: StartPool) -> None:
    served = start_pool(BOTH)
    models = {model.id: model.model_dump()["fenhe"] for model in served.client.models.list().data}
    assert list(models) == ["auto", "big", "big:shallow", "big:full", "maths", "maths:shallow", "maths:full"]
    assert [name for name, model in models.items() if model["is_routed"]] == ["auto", "big", "maths"]
    assert models["maths:shallow"]["student"] == "maths"


def test_unknown_model_lists_every_student(start_pool: StartPool) -> None:
    message = start_pool(BOTH).chat("x", model="small").json()["error"]["message"]
    assert "`big:full`" in message
    assert "`maths`" in message


def test_version_and_tokenizer_are_those_of_the_model(start_pool: StartPool) -> None:
    served = start_pool(BOTH)
    assert served.http.get("/version").json()["student"] == "big"
    assert served.http.get("/version", params={"model": "maths:full"}).json()["student"] == "maths"
    assert served.http.get("/version", params={"model": "small"}).status_code == 404
    body = served.post("/tokenize", {"model": "maths", "prompt": "x"}).json()
    assert body["max_model_len"] == CONTEXT_TOKENS
    assert served.post("/detokenize", {"model": "maths", "tokens": [120]}).json() == {"prompt": "x"}


def test_less_occupied_of_equals_is_chosen(start_pool: StartPool) -> None:
    served = start_pool({"one": (), "two": ()})
    body = {"model": "one", "prompt": "slow", "stream": True}
    with served.http.stream("POST", "/v1/completions", json=body):
        assert answered_by(served) == ("two", "full")
    assert until(lambda: served.engines["one"].status().num_running == 0)
    assert answered_by(served) == ("one", "full")


def test_requests_are_bounded_over_all_students(start_pool: StartPool) -> None:
    served = start_pool({"one": (), "two": ()}, config=ServerConfig(limits=Limits(max_requests=1)))
    body = {"model": "one", "prompt": "slow", "stream": True}
    with served.http.stream("POST", "/v1/completions", json=body):
        assert served.chat("hello", model="two").status_code == 429


def test_same_request_id_is_told_apart_across_students(start_pool: StartPool) -> None:
    served = start_pool({"one": (), "two": ()})
    headers = {"x-request-id": "twice"}
    body = {"model": "one", "prompt": "slow", "stream": True}
    with served.http.stream("POST", "/v1/completions", json=body, headers=headers):
        second = served.chat("hello", model="two", headers=headers)
    assert second.json()["id"].startswith("chatcmpl-twice.")


@pytest.mark.parametrize(
    "refusal",
    [
        SICK,
        Line(refusal=QueueFull("no room", retry_after_s=1.0)),
        Line(refusal=DeadlineUnreachable("too much is queued", retry_after_s=1.0)),
    ],
)
def test_fallback_tells_its_own_reason(start_pool: StartPool, refusal: Line) -> None:
    served = start_pool({"big": (), "maths": ("fact",)}, maths={"script": {"fact": refusal}})
    served.context.pool.find("maths").student.manifest.tasks["fact"] = "full"
    response = served.chat("a fact")
    assert (response.headers["x-fenhe-student"], response.headers["x-fenhe-reason"]) == ("big", "min_quality")
    assert served.route("a fact").json()["reason"] == "task"


def test_fallback_ends_when_the_time_is_up(start_pool: StartPool, monkeypatch: pytest.MonkeyPatch) -> None:
    served = start_pool(
        BOTH,
        config=ServerConfig(limits=Limits(request_timeout_s=0.2)),
        maths={"script": {"math": SICK}},
    )
    encode = ChatOrder.encode

    async def slow_encode(order: ChatOrder, student: ServedStudent) -> list[Prompt]:
        if student.name == "big":
            await asyncio.Event().wait()
        return await encode(order, student)

    monkeypatch.setattr(ChatOrder, "encode", slow_encode)
    response = served.chat("math")
    assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert served.engines["big"].submitted == []


def test_student_with_too_short_a_context_gives_way(start_pool: StartPool) -> None:
    served = start_pool(BOTH)
    served.context.pool.find("maths").max_configured_tokens = 40
    body = served.route("math " * 20).json()
    assert (body["student"], body["fallbacks"]) == ("big", [])
    assert "tokens > 39 maximum" in body["skipped"]["maths"]
    assert answered_by(served, "math " * 20)[0] == "big"
    assert answered_by(served, "math")[0] == "maths"
    assert served.chat("math " * 200).json()["error"]["code"] == "context_length_exceeded"


def test_too_long_a_prompt_is_told_even_if_the_next_student_cannot_read_it(
    start_pool: StartPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = start_pool(BOTH)
    encode = ChatOrder.encode

    async def picky_encode(order: ChatOrder, student: ServedStudent) -> list[Prompt]:
        if student.name == "big":
            raise BadRequest("it has no chat template")
        return await encode(order, student)

    monkeypatch.setattr(ChatOrder, "encode", picky_encode)
    assert served.chat("math " * 200).json()["error"]["code"] == "context_length_exceeded"


def test_queue_full_everywhere_is_the_first_students_error(start_pool: StartPool) -> None:
    full = Line(refusal=QueueFull("maths has no room", retry_after_s=1.0))
    served = start_pool(BOTH, maths={"script": {"math": full}}, big={"script": {"math": SICK}})
    response = served.chat("math")
    assert (response.status_code, response.json()["error"]["message"]) == (429, "maths has no room")


def test_fallback_ends_when_the_client_leaves(start_pool: StartPool, monkeypatch: pytest.MonkeyPatch) -> None:
    served = start_pool(BOTH, maths={"script": {"math": SICK}})
    ended: list[str] = []
    encode = ChatOrder.encode

    async def slow_encode(order: ChatOrder, student: ServedStudent) -> list[Prompt]:
        if student.name == "big":
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(student.name)
        return await encode(order, student)

    monkeypatch.setattr(ChatOrder, "encode", slow_encode)
    with pytest.raises(httpx.ReadTimeout):
        served.http.post(
            "/v1/chat/completions",
            json={"model": "auto", "messages": [{"role": "user", "content": "math"}]},
            timeout=0.3,
        )
    assert until(lambda: ended == ["big"])


def test_token_ids_belong_to_the_first_student(start_pool: StartPool) -> None:
    served = start_pool(BOTH)
    body = {"model": "auto", "prompt": list(b"math")}
    assert served.post("/v1/completions", body).headers["x-fenhe-student"] == "big"
    told = served.post("/v1/route", body).json()
    assert (told["student"], told["fallbacks"]) == ("big", [])
    assert served.post("/v1/route", {"prompt": "math"}).json()["student"] == "maths"


def test_status_is_asked_once_per_request(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    served = start()
    served.chat("hello")
    asked: list[str] = []
    status = ScriptedEngine.status

    def count(engine: ScriptedEngine) -> EngineStatus:
        asked.append("status")
        return status(engine)

    monkeypatch.setattr(ScriptedEngine, "status", count)
    served.chat("hello")
    assert len(asked) == 1
