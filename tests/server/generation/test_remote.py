"""Remote students over HTTP: what upstreams are sent, what clients get back, and what happens when upstreams fail."""

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import httpx
import openai
import pytest

from bench.engines.served import free_port
from engines.remote.engine import RemoteEngine
from engines.scripted import Line
from router.cache.config import CacheConfig
from server.settings.config import Limits, ServerConfig
from tests.server.conftest import Served, Start, events_of, make_engine, make_student, open_scripted, run_server, until
from tests.server.upstreams import (
    DONE,
    GOOD_STREAM,
    USAGE,
    WHOLE,
    FakeUpstream,
    chunk,
    hang,
    remote,
    reply,
    saying,
    stream_head,
    streaming,
    upstream,
    well,
)

Serve = Callable[..., Served]


@pytest.fixture
def serve() -> Iterator[Serve]:
    with contextlib.ExitStack() as stack:

        def begin(*students: Any, **settings: Any) -> Served:
            return stack.enter_context(run_server(students, ServerConfig(**settings)))

        yield begin


@pytest.fixture
def fake() -> Iterator[FakeUpstream]:
    with upstream() as running:
        yield running


def unused_url() -> str:
    return f"http://127.0.0.1:{free_port()}/v1"


def error_of(response: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = response.json()["error"]
    return found


def test_a_whole_answer_passes_with_our_names(serve: Serve, fake: FakeUpstream) -> None:
    far = serve(remote(fake.url))
    response = far.chat("hello", top_logprobs=3, logprobs=True, unheard_of=1)
    body = response.json()
    assert response.status_code == 200
    assert body | {"id": "", "model": ""} == WHOLE | {"id": "", "model": ""}
    assert body["id"].startswith("chatcmpl-")
    assert body["model"] == "far"
    assert response.headers["x-fenhe-student"] == "far"
    assert response.headers["x-fenhe-path"] == "full"
    sent = fake.got[0].body
    assert sent["model"] == "their-model"
    assert sent["top_logprobs"] == 3
    assert sent["unheard_of"] == 1
    assert fake.got[0].path == "/v1/chat/completions"


def test_a_stream_passes_with_our_names(serve: Serve, fake: FakeUpstream) -> None:
    far = serve(remote(fake.url))
    response = far.chat("hello", stream=True)
    *chunks, done = events_of(response.content)
    assert done == "[DONE]"
    assert [one["choices"][0]["delta"].get("content") for one in chunks] == ["Hel", "lo", None]
    assert {one["model"] for one in chunks} == {"far"}
    assert len({one["id"] for one in chunks}) == 1
    assert not any("usage" in one for one in chunks)
    assert fake.got[0].body["stream_options"] == {"include_usage": True}


def test_usage_is_passed_to_who_asked(serve: Serve, fake: FakeUpstream) -> None:
    far = serve(remote(fake.url))
    response = far.chat("hello", stream=True, stream_options={"include_usage": True})
    assert events_of(response.content)[-2]["usage"] == USAGE


def test_the_openai_client_reads_both(serve: Serve, fake: FakeUpstream) -> None:
    client = serve(remote(fake.url)).client
    messages: Any = [{"role": "user", "content": "hello"}]
    whole = client.chat.completions.create(model="far", messages=messages)
    parts = [
        one.choices[0].delta.content or ""
        for one in client.chat.completions.create(model="auto", messages=messages, stream=True)
    ]
    assert whole.choices[0].message.content == "Hi there"
    assert "".join(parts) == "Hello"


def test_fields_of_ours_stay_here_and_everything_else_passes(serve: Serve, fake: FakeUpstream) -> None:
    far = serve(remote(fake.url))
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "what is it?"}, image]}]
    body = {"model": "far", "messages": messages, "fenhe": {"task": "fact"}, "n": 3, "seed": 7, "logit_bias": {"5": 1}}
    assert far.post("/v1/chat/completions", body).status_code == 200
    del body["fenhe"]
    assert fake.got[0].body == body | {"model": "their-model"}


def test_schemas_keep_their_order(serve: Serve, fake: FakeUpstream) -> None:
    far = serve(remote(fake.url))
    schema = {"type": "object", "properties": {"zeta": {"type": "string"}, "alpha": {"type": "number"}}}
    far.chat("hello", response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
    sent = fake.got[0].body["response_format"]["json_schema"]["schema"]["properties"]
    assert list(sent) == ["zeta", "alpha"]


@pytest.mark.parametrize("wrong", [{"path": "deep"}, {"quality": "best"}, {"colour": 1}, 5])
def test_wrong_options_of_ours_are_refused(serve: Serve, fake: FakeUpstream, wrong: Any) -> None:
    response = serve(remote(fake.url)).chat("hello", fenhe=wrong)
    assert response.status_code in (400, 404)
    assert not fake.got


def test_headers_name_the_request_and_never_its_caller(serve: Serve, fake: FakeUpstream) -> None:
    far = serve(remote(fake.url, key_env=("THEIR_KEY",), environ={"THEIR_KEY": "sk-theirs"}))
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = {"authorization": "Bearer sk-callers", "x-request-id": "req-1", "traceparent": trace, "cookie": "a=b"}
    far.chat("hello", headers=headers)
    sent = fake.got[0].headers
    assert sent["authorization"] == "Bearer sk-theirs"
    assert sent["x-request-id"] == "req-1"
    assert sent["traceparent"] == trace
    assert "cookie" not in sent
    assert "sk-callers" not in str(sent)


def test_a_key_appears_in_no_error(serve: Serve, fake: FakeUpstream, caplog: pytest.LogCaptureFixture) -> None:
    fake.answer = saying(reply(401, {"error": {"message": "bad key", "code": "invalid_api_key"}}))
    far = serve(remote(fake.url, key_env=("THEIR_KEY",), environ={"THEIR_KEY": "sk-theirs"}))
    response = far.chat("hello")
    assert response.status_code == 503
    assert "key_env" in error_of(response)["message"]
    assert "sk-theirs" not in response.text + caplog.text + far.http.get("/startup").text


def test_a_missing_key_is_named() -> None:
    with pytest.raises(Exception, match="THEIR_KEY"):
        remote("http://127.0.0.1:1/v1", key_env=("THEIR_KEY",))


NAMED = {"id": "u", "model": "their-model"}
TURNS = [{"role": "user", "content": "say"}]
PLACES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("completions", {"prompt": "say"}, {"choices": [{"text": "x", "finish_reason": "stop"}]}),
    ("responses", {"input": "say"}, {"object": "response", "output": []}),
    ("messages", {"messages": TURNS, "max_tokens": 5}, {"type": "message", "content": []}),
]


@pytest.mark.parametrize(("endpoint", "body", "answered"), PLACES)
def test_every_endpoint_that_generates_is_passed_on(
    serve: Serve, fake: FakeUpstream, endpoint: str, body: dict[str, Any], answered: dict[str, Any]
) -> None:
    fake.answer = saying(reply(200, NAMED | answered))
    response = serve(remote(fake.url)).post(f"/v1/{endpoint}", {"model": "far", **body})
    assert response.status_code == 200
    assert response.json()["model"] == "far"
    assert response.json()["id"] != "u"
    assert fake.got[0].path == f"/v1/{endpoint}"


def test_events_of_responses_keep_their_types(serve: Serve, fake: FakeUpstream) -> None:
    inner = NAMED | {"status": "completed", "usage": {"input_tokens": 4, "output_tokens": 2}}
    kinds = ["response.created", "response.output_text.delta", "response.completed"]
    events = [{"type": kind, "delta": "hi"} if "delta" in kind else {"type": kind, "response": inner} for kind in kinds]
    raw = "".join(f"event: {one['type']}\ndata: {json.dumps(one)}\n\n" for one in events).encode()
    fake.answer = streaming(raw)
    response = serve(remote(fake.url)).post("/v1/responses", {"model": "far", "input": "x", "stream": True})
    blocks = response.content.decode().strip().split("\n\n")
    assert [block.split("\n")[0] for block in blocks] == [f"event: {kind}" for kind in kinds]
    assert "their-model" not in response.text
    assert "[DONE]" not in response.text


BOOM = {"code": "server_error", "message": "boom"}
NO_ANSWERS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("responses", {"input": "say"}, {"object": "response", "status": "failed", "error": BOOM, "output": []}),
    ("responses", {"input": "say"}, {"object": "response", "status": "cancelled", "output": []}),
    ("completions", {"prompt": "say"}, {"choices": [{"text": "x", "finish_reason": "error"}]}),
    ("chat/completions", {"messages": TURNS}, {"choices": [{"message": {}, "finish_reason": "abort"}]}),
    ("messages", {"messages": TURNS, "max_tokens": 5}, {"type": "error", "error": BOOM}),
]


@pytest.mark.parametrize(("endpoint", "body", "answered"), NO_ANSWERS)
def test_failure_with_status_200_is_an_error_and_is_not_cached(
    serve: Serve, fake: FakeUpstream, endpoint: str, body: dict[str, Any], answered: dict[str, Any]
) -> None:
    fake.answer = saying(reply(200, NAMED | answered))
    far = serve(remote(fake.url))
    for _ in range(2):
        response = far.post(f"/v1/{endpoint}", {"model": "far", "temperature": 0, **body})
        assert response.status_code == 503
        assert ("boom" in response.text) == ("error" in answered)
    assert len(fake.got) >= 2


FAILED_EVENTS: list[dict[str, Any]] = [
    {"type": "response.failed", "response": NAMED | {"status": "failed", "error": BOOM}},
    {"type": "error", **BOOM},
    {"type": "error", "error": BOOM},
]


@pytest.mark.parametrize("event", FAILED_EVENTS)
def test_failure_inside_a_stream_of_a_response_ends_it_with_an_error(
    serve: Serve, fake: FakeUpstream, event: dict[str, Any]
) -> None:
    begun: dict[str, Any] = {"type": "response.created", "response": NAMED | {"status": "in_progress", "error": None}}
    events = [begun, {"type": "response.output_text.delta", "delta": "hi"}, event]
    fake.answer = streaming("".join(f"data: {json.dumps(one)}\n\n" for one in events).encode())
    response = serve(remote(fake.url)).post("/v1/responses", {"model": "far", "input": "x", "stream": True})
    assert "boom" in response.text.strip().split("\n\n")[-1]


HALF = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{"


def failing(status: int, body: Any, headers: str = "", kind: str = "application/json") -> Any:
    return saying(reply(status, body, headers, kind))


def said(message: str, **fields: Any) -> dict[str, Any]:
    return {"error": {"message": message, **fields}}


FAILURES: dict[str, tuple[Any, int, str]] = {
    "nothing": (saying(b""), 503, "upstream_failed"),
    "garbage": (saying(b"\x00\x01\x02 garbage\r\n\r\n"), 503, "upstream_failed"),
    "no JSON": (failing(200, b"<html>"), 503, "upstream_failed"),
    "a list": (failing(200, b"[1]"), 503, "upstream_failed"),
    "a page": (failing(200, b"<html>", kind="text/html"), 503, "upstream_failed"),
    "half a body": (saying(HALF), 503, "upstream_failed"),
    "an error with 200": (failing(200, said("no")), 503, "upstream_failed"),
    "500": (failing(500, said("boom")), 503, "upstream_failed"),
    "a proxy's 502": (failing(502, b"<html>Bad Gateway", kind="text/html"), 503, "upstream_failed"),
    "a redirect": (failing(302, b"", "location: http://127.0.0.1:1/\r\n"), 503, "upstream_failed"),
    "busy": (failing(429, said("slow down"), "retry-after: 7\r\n"), 429, "upstream_busy"),
    "busy with 503": (failing(503, {"detail": "full"}, "retry-after: 7\r\n"), 429, "upstream_busy"),
    "a bad value": (failing(400, said("bad temperature", param="temperature")), 400, "invalid_value"),
    "too long": (failing(400, said("maximum context length is 8")), 400, "context_length_exceeded"),
    "FastAPI's 422": (failing(422, {"detail": [{"msg": "wrong"}]}), 400, "invalid_request"),
    "an unknown model": (failing(404, said("The model `x` does not exist.")), 503, "upstream_model_missing"),
    "no such endpoint": (failing(404, {"detail": "Not Found"}), 404, "not_found"),
}


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("what", FAILURES)
def test_failures_have_their_own_errors(serve: Serve, fake: FakeUpstream, what: str, is_stream: bool) -> None:
    fake.answer, status, code = FAILURES[what]
    response = serve(remote(fake.url)).chat("hello", stream=is_stream)
    assert (response.status_code, error_of(response)["code"]) == (status, code)
    assert "127.0.0.1" not in response.text
    if code == "upstream_busy":
        assert response.headers["retry-after"] == "7"
    if code == "invalid_value":
        assert error_of(response)["param"] == "temperature"


STREAM_FAILURES = {
    "cut off": b"",
    "an error": b'data: {"error": {"message": "out of memory"}}\n\n',
    "no JSON": b"data: {oops\n\n",
    "an endless event": b"data: " + b"x" * (17 * 1024 * 1024),
}


@pytest.mark.parametrize("what", STREAM_FAILURES)
def test_a_stream_that_breaks_ends_with_an_error(serve: Serve, fake: FakeUpstream, what: str) -> None:
    fake.answer = saying(stream_head(), chunk("Hel"), STREAM_FAILURES[what], delay_s=0.2)
    response = serve(remote(fake.url)).chat("hello", stream=True)
    *_, text, error = events_of(response.content)
    assert response.status_code == 200
    assert text["choices"][0]["delta"]["content"] == "Hel"
    assert error["error"]["code"] == "upstream_failed"


GOOD_STREAMS = {
    "no end mark": chunk("Hel") + chunk("lo") + chunk(finish="length"),
    "other line ends": GOOD_STREAM.replace(b"\n", b"\r\n"),
    "comments": b": ping\n\n" + GOOD_STREAM.replace(b"data: ", b": ping\ndata:"),
    "no last blank line": GOOD_STREAM[:-1],
}


def test_a_stream_that_a_proxy_held_back_comes_whole(serve: Serve, fake: FakeUpstream) -> None:
    fake.answer = saying(b"", reply(200, GOOD_STREAM, kind="text/event-stream; charset=utf-8"), delay_s=0.2)
    response = serve(remote(fake.url)).chat("hello", stream=True)
    assert len(events_of(response.content)) == 4


def test_an_upstream_that_has_ended_its_side_is_read_to_the_end(serve: Serve, fake: FakeUpstream) -> None:
    async def answer(got: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(stream_head() + GOOD_STREAM)
        writer.write_eof()
        await asyncio.sleep(3600)

    fake.answer = answer
    response = serve(remote(fake.url)).chat("hello", stream=True)
    assert len(events_of(response.content)) == 4


@pytest.mark.parametrize("what", GOOD_STREAMS)
def test_streams_of_other_servers_are_read(serve: Serve, fake: FakeUpstream, what: str) -> None:
    fake.answer = streaming(GOOD_STREAMS[what])
    response = serve(remote(fake.url)).chat("hello", stream=True)
    *chunks, done = events_of(response.content)
    assert done == "[DONE]"
    assert [one["choices"][0]["delta"].get("content") for one in chunks][:2] == ["Hel", "lo"]


def test_bytes_may_come_one_by_one(serve: Serve, fake: FakeUpstream) -> None:
    stream = chunk("Héllo 你好") + chunk(finish="stop") + DONE
    fake.answer = saying(stream_head(), *(stream[i : i + 1] for i in range(len(stream))))
    response = serve(remote(fake.url)).chat("hello", stream=True)
    assert events_of(response.content)[0]["choices"][0]["delta"]["content"] == "Héllo 你好"


def test_a_chunk_is_passed_on_before_the_next_one(serve: Serve, fake: FakeUpstream) -> None:
    async def answer(got: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(stream_head() + chunk("first"))
        for _ in range(1000):
            await writer.drain()
            await asyncio.sleep(0.1)
            writer.write(chunk("next"))

    fake.answer = answer
    far = serve(remote(fake.url))
    body = {"model": "far", "messages": [{"role": "user", "content": "x"}], "stream": True}
    with far.http.stream("POST", "/v1/chat/completions", json=body) as response:
        assert b"first" in next(response.iter_raw())
    assert until(lambda: fake.num_left == 1)  # and the upstream learns that the client has left
    assert until(lambda: not far.student.engine.sequences(1.0))
    assert far.student.engine.audit(1.0) == []


def test_a_slow_first_token_and_a_slow_next_one_end_in_time(serve: Serve, fake: FakeUpstream) -> None:
    fake.answer = hang
    far = serve(remote(fake.url, first_token_timeout_s=0.2, token_timeout_s=0.2))
    response = far.chat("hello", stream=True)
    assert response.status_code == 503
    assert "did not begin to answer" in error_of(response)["message"]

    async def stall(got: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(stream_head() + chunk("Hel"))
        await asyncio.sleep(3600)

    fake.answer = stall
    *_, error = events_of(far.chat("hello", stream=True).content)
    assert "did not go on with its answer" in error["error"]["message"]


def test_another_replica_answers_while_nothing_was_sent(serve: Serve, fake: FakeUpstream) -> None:
    with upstream(saying(reply(500, {"error": {"message": "boom"}}))) as broken:
        far = serve(remote(broken.url, fake.url))
        for number in range(8):
            assert far.chat(f"hello {number}").status_code == 200
    assert len(fake.got) == 8
    assert 1 <= len(broken.got) <= 3  # then it is left alone


def test_a_connection_that_was_kept_too_long_is_no_failure(serve: Serve, fake: FakeUpstream) -> None:
    async def drop_the_first(got: Any, writer: asyncio.StreamWriter) -> None:
        fake.answer = well
        writer.close()

    far = serve(remote(fake.url, max_failures=1))
    for _ in range(3):
        fake.answer = drop_the_first
        assert far.chat("hello").status_code == 200


def test_an_answer_that_has_begun_is_not_begun_again(serve: Serve, fake: FakeUpstream) -> None:
    fake.answer = streaming(chunk("Hel"))
    with upstream(streaming(chunk("Hel"))) as other:
        far = serve(remote(other.url, fake.url))
        far.chat("hello", stream=True)
        assert len(fake.got) + len(other.got) == 1


def test_a_bad_request_is_not_tried_elsewhere(serve: Serve, fake: FakeUpstream) -> None:
    bad = saying(reply(400, {"error": {"message": "bad"}}))
    fake.answer = bad
    with upstream(bad) as other:
        far = serve(remote(other.url, fake.url))
        assert far.chat("hello").status_code == 400
        assert len(fake.got) + len(other.got) == 1


def test_the_turns_of_a_conversation_go_to_one_replica(serve: Serve, fake: FakeUpstream) -> None:
    with upstream() as other:
        far = serve(remote(other.url, fake.url))
        for number in range(12):
            turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"I am number {number}"}]
            before = (len(fake.got), len(other.got))
            for _ in range(3):
                far.post("/v1/chat/completions", {"model": "far", "messages": turns})
                turns = [*turns, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "And?"}]
            moved = (len(fake.got) - before[0], len(other.got) - before[1])
            assert sorted(moved) == [0, 3]
        assert fake.got
        assert other.got


def test_an_upstream_that_is_down_at_the_start_stops_nobody(serve: Serve) -> None:
    url = unused_url()
    far = serve(remote(url))
    assert until(lambda: far.http.get("/readyz").status_code == 503)
    response = far.chat("hello")
    assert response.status_code == 503
    assert "its upstream" in error_of(response)["message"]
    assert int(response.headers["retry-after"]) >= 1
    with upstream(port=int(url.rpartition(":")[2].removesuffix("/v1"))):
        assert until(lambda: far.http.get("/readyz").status_code == 200)
        assert far.chat("hello").status_code == 200


def test_a_model_that_no_upstream_has_is_named(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    with upstream(models=["other-model"]) as fake:
        far = serve(remote(fake.url))
        assert until(lambda: "missing=['their-model']: it has other-model" in caplog.text)
        assert caplog.text.count("lacks models") == 1
        assert until(lambda: far.http.get("/readyz").status_code == 503)
        response = far.chat("hello")
        assert response.status_code == 503
        assert error_of(response)["code"] == "upstream_model_missing"
        assert "`their-model`" in error_of(response)["message"]
        assert "`other-model`" in error_of(response)["message"]
        assert not fake.got


def test_an_upstream_that_is_busy_is_not_gone(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.remote.health.CHECK_TIMEOUT_S", 0.2)
    busy = threading.Event()

    async def answer(got: Any, writer: asyncio.StreamWriter) -> None:
        busy.set()
        while busy.is_set():
            await asyncio.sleep(0.05)
        await well(got, writer)

    with upstream(answer) as fake, ThreadPoolExecutor(1) as pool:
        far = serve(remote(fake.url))
        found = pool.submit(far.chat, "hello")
        assert busy.wait(10)
        fake.hides_models = True
        one = cast("RemoteEngine", far.student.engine).upstreams[0]
        assert until(lambda: one.is_slow)
        assert far.http.get("/readyz").status_code == 200
        busy.clear()
        assert found.result(10).status_code == 200
        assert until(lambda: far.http.get("/readyz").status_code == 503)  # idle and silent: that is gone
        fake.hides_models = False
        assert until(lambda: far.http.get("/readyz").status_code == 200)
        assert not one.is_slow


def test_a_request_that_comes_back_is_refused(serve: Serve) -> None:
    url = unused_url()
    port = int(url.rpartition(":")[2].removesuffix("/v1"))
    far = serve(remote(url))
    with upstream(port=port) as fake:
        assert until(lambda: far.http.get("/readyz").status_code == 200)
        far.chat("hello")
        hops = fake.got[0].headers["x-fenhe-hops"]
    response = far.chat("hello", headers={"x-fenhe-hops": hops})
    assert response.status_code == 508
    assert error_of(response)["code"] == "loop_detected"
    assert response.headers["x-should-retry"] == "false"


def test_repeated_requests_are_answered_from_the_cache(serve: Serve, fake: FakeUpstream) -> None:
    far = serve(remote(fake.url))
    first, second = (far.chat("hello", temperature=0) for _ in range(2))
    assert [one.headers["x-fenhe-cache"] for one in (first, second)] == ["miss", "hit"]
    assert first.json()["id"] != second.json()["id"]
    assert first.json()["choices"] == second.json()["choices"]
    assert len(fake.got) == 1
    streams = [far.chat("hello", temperature=0, stream=True) for _ in range(2)]
    assert [one.headers["x-fenhe-cache"] for one in streams] == ["miss", "hit"]
    assert [len(events_of(one.content)) for one in streams] == [4, 4]
    assert far.chat("hello", temperature=0, top_k=3).headers["x-fenhe-cache"] == "miss"


def test_failures_are_not_kept(serve: Serve, fake: FakeUpstream) -> None:
    far = serve(remote(fake.url))
    fake.answer = saying(reply(400, {"error": {"message": "bad"}}))
    assert far.chat("hello", temperature=0).status_code == 400
    fake.answer = streaming(chunk("Hel"))
    far.chat("hello", temperature=0, stream=True)
    fake.answer = well
    assert far.chat("hello", temperature=0).headers["x-fenhe-cache"] == "miss"
    assert far.chat("hello", temperature=0, stream=True).headers["x-fenhe-cache"] == "miss"


def test_equal_requests_share_one_call(serve: Serve, fake: FakeUpstream) -> None:
    fake.answer = streaming(GOOD_STREAM, delay_s=0.3)
    far = serve(remote(fake.url))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: far.chat("hello", temperature=0, stream=True), range(4)))
    assert len(fake.got) == 1
    assert len({one.content.count(b"data: ") for one in found}) == 1


def test_a_local_student_takes_over(serve: Serve, fake: FakeUpstream, tmp_path: Any) -> None:
    fake.answer = saying(reply(500, {"error": {"message": "boom"}}))
    local = open_scripted(make_student(tmp_path, "near"), make_engine({}, student="near"))
    both = serve(remote(fake.url), local)
    response = both.chat("hello")
    assert response.status_code == 200
    assert response.headers["x-fenhe-student"] == "near"
    assert len(fake.got) == 1
    named = both.chat("hello", model="far")
    assert named.status_code == 503


def test_a_remote_student_takes_over(serve: Serve, fake: FakeUpstream, tmp_path: Any) -> None:
    from models.errors import QueueFull

    full = {"hello": Line(refusal=QueueFull("full"))}
    local = open_scripted(make_student(tmp_path, "near"), make_engine(full, student="near"))
    both = serve(local, remote(fake.url))
    response = both.chat("hello")
    assert response.status_code == 200
    assert response.headers["x-fenhe-student"] == "far"


def test_paths_are_models_of_the_upstream(serve: Serve, fake: FakeUpstream) -> None:
    far = serve(
        remote(
            fake.url,
            paths={"small": "model-1b", "full": "model-70b"},
            costs={"small": 0.05, "full": 1.0},
            keeps={"small.fact": 0.995, "small.math": 0.5},
        )
    )
    listed = {model["id"]: model["fenhe"]["compute_share"] for model in far.http.get("/v1/models").json()["data"]}
    assert listed == {"auto": 1.0, "far": 1.0, "far:full": 1.0, "far:small": 0.05}
    routed = {prompt: far.chat(prompt) for prompt in ("fact", "math", "legal")}
    assert [one.body["model"] for one in fake.got] == ["model-1b", "model-70b", "model-70b"]
    assert routed["fact"].headers["x-fenhe-path"] == "small"
    assert routed["fact"].headers["x-fenhe-compute"] == "0.05"
    far.chat("x", model="far:small")
    assert fake.got[-1].body["model"] == "model-1b"


def test_what_needs_a_tokenizer_is_refused_by_name(serve: Serve, fake: FakeUpstream) -> None:
    far = serve(remote(fake.url))
    for path, body in (("/tokenize", {"prompt": "x"}), ("/detokenize", {"tokens": [1]})):
        response = far.post(path, {"model": "far", **body})
        assert response.status_code == 400
        assert "`far` runs elsewhere" in error_of(response)["message"]


def test_token_prompts_pass(serve: Serve, fake: FakeUpstream) -> None:
    far = serve(remote(fake.url))
    far.post("/v1/completions", {"model": "far", "prompt": [[1, 2], [3]]})
    assert fake.got[0].body["prompt"] == [[1, 2], [3]]


def test_our_bound_of_answers_holds(serve: Serve, fake: FakeUpstream) -> None:
    far = serve(remote(fake.url), limits=Limits(max_completion_tokens=50))
    given: list[dict[str, Any]] = [{}, {"max_tokens": 70}, {"max_tokens": 20}, {"max_completion_tokens": -1}]
    for fields in given:
        far.chat("hello", **fields)
    sent = [(one.body.get("max_tokens"), one.body.get("max_completion_tokens")) for one in fake.got]
    assert sent == [(None, 50), (50, None), (20, None), (None, 50)]


def test_the_upstreams_usage_is_counted(serve: Serve, fake: FakeUpstream) -> None:
    far = serve(remote(fake.url))
    far.chat("hello", stream=True)
    far.chat("hello")
    status = far.student.engine.status()
    assert (status.num_prompt_tokens, status.num_generation_tokens) == (22, 5)


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"messages": []}', b'{"model": 5}', b'{"model":"far","stream":"yes"}'])
def test_bodies_that_cannot_be_passed_are_refused(serve: Serve, fake: FakeUpstream, body: bytes) -> None:
    far = serve(remote(fake.url))
    response = far.http.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert not fake.got


def test_a_server_of_ours_is_an_upstream(serve: Serve, start: Start) -> None:
    near = start()
    far = serve(remote(f"{near.url}/v1", model="tiny"))
    direct = near.client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "accents"}])
    passed = far.client.chat.completions.create(model="far", messages=[{"role": "user", "content": "accents"}])
    assert passed.choices == direct.choices
    stream = far.client.chat.completions.create(
        model="far", messages=[{"role": "user", "content": "long"}], stream=True
    )
    assert "".join(one.choices[0].delta.content or "" for one in stream) == "".join(f"w{i} " for i in range(50))
    with pytest.raises(openai.BadRequestError, match="temperature"):
        far.client.chat.completions.create(model="far", messages=[{"role": "user", "content": "x"}], temperature=-5)


def test_stopping_ends_what_runs(serve: Serve, fake: FakeUpstream) -> None:
    fake.answer = hang
    far = serve(remote(fake.url), cache=CacheConfig(enabled=False))
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(far.chat("hello").status_code))
    thread.start()
    assert until(lambda: len(fake.got) == 1)
    far.student.engine.stop(0.0)
    thread.join(10)
    assert found == [503]
