"""The result cache through the API: answers that cost no work, shared ones, and those that must not be shared."""

import asyncio
import contextlib
import dataclasses
import hashlib
import http.client
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from engines.config import EngineConfig
from engines.scripted import Line
from engines.sequence import FinishReason, Usage
from models.errors import EngineUnhealthy, QueueFull, StepFailed
from router.cache.config import CacheConfig
from router.cache.entry import Choice, Entry, encode_entry
from router.cache.result_cache import Outcome
from router.decision import Priority
from server.generation.supply import Supplier, Supply
from server.settings.config import AdminConfig, KeysConfig, Limits, ServerConfig
from server.settings.reading import load_config
from tests.router.redis_process import BINARY, REASON, redis_server
from tests.server.api.test_responses import typed_events
from tests.server.conftest import (
    SCRIPT,
    Served,
    Start,
    StartPool,
    TinyStudent,
    events_of,
    make_engine,
    make_tokenizer,
    open_scripted,
    run_server,
    until,
)
from tests.server.telemetry.test_metrics import value

GREEDY: dict[str, Any] = {"temperature": 0}
PACED = Line(pieces=tuple(f"{i} " for i in range(12)), delay_s=0.05)
NONE = Usage(num_prompt_tokens=1, num_cached_tokens=0, num_completion_tokens=1)
ADMIN_KEY = "let me in"
ADMIN = {"authorization": f"Bearer {ADMIN_KEY}"}


def outcome(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return response.headers["x-fenhe-cache"]


def words(response: httpx.Response) -> str:
    return str(response.json()["choices"][0]["message"]["content"])


def ask(served: Served, prompt: str = "hello", **fields: Any) -> str:
    return outcome(served.chat(prompt, **{**GREEDY, **fields}))


def num_asked(served: Served) -> int:
    return len(served.engine.submitted)


@contextlib.contextmanager
def serve(student: TinyStudent, config: ServerConfig, script: dict[str, Line] | None = None) -> Iterator[Served]:
    with run_server([open_scripted(student, make_engine({**SCRIPT, **(script or {})}))], config) as running:
        yield running


@contextlib.contextmanager
def streaming(
    served: Served, prompt: str, headers: dict[str, str] | None = None, **fields: Any
) -> Iterator[httpx.Response]:
    """A stream that has begun and is not read to its end."""
    body = {"model": "auto", "messages": [{"role": "user", "content": prompt}], "stream": True, **GREEDY, **fields}
    with served.http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
        yield response


def at_once(served: Served, num_requests: int, **fields: Any) -> list[httpx.Response]:
    """The same request from many clients: the first has begun before the others ask."""

    def send() -> httpx.Response:
        with httpx.Client(base_url=served.url, timeout=20) as http:
            body = {"model": "auto", "messages": [{"role": "user", "content": "paced"}], **GREEDY, **fields}
            return http.post("/v1/chat/completions", json=body)

    with ThreadPoolExecutor(num_requests) as pool:
        return [future.result() for future in [pool.submit(send) for _ in range(num_requests)]]


def test_second_request_is_a_hit_and_costs_no_work(start: Start) -> None:
    served = start()
    first, second = served.chat("hello", **GREEDY), served.chat("hello", **GREEDY)
    assert (outcome(first), outcome(second)) == ("miss", "hit")
    assert "age" not in first.headers
    assert int(second.headers["age"]) >= 0
    assert num_asked(served) == 1
    one, two = first.json(), second.json()
    assert one.pop("id") != two.pop("id")
    assert (one.pop("created"), one) == (pytest.approx(two.pop("created"), abs=60), two)
    route = [name for name in first.headers if name.startswith("x-fenhe-")]
    for name, values in (("x-fenhe-cache", ("miss", "hit")), ("x-fenhe-compute", ("1.00", "0.00"))):
        route.remove(name)
        assert (first.headers[name], second.headers[name]) == values
    assert [first.headers[name] for name in route] == [second.headers[name] for name in route]


def test_only_what_can_be_repeated_is_kept_unless_the_request_asks(start: Start) -> None:
    served = start()
    assert [ask(served, temperature=1), ask(served, temperature=1)] == ["bypass", "bypass"]
    assert [ask(served, temperature=1, seed=4), ask(served, temperature=1, seed=4)] == ["miss", "hit"]
    assert ask(served, temperature=1, seed=5) == "miss"
    fields: dict[str, Any] = {"temperature": 1, "fenhe": {"cache": True}}
    assert [ask(served, **fields), ask(served, **fields)] == ["miss", "hit"]
    assert [ask(served, fenhe={"cache": False}) for _ in range(2)] == ["bypass", "bypass"]


@pytest.mark.parametrize(
    "change",
    [
        {"max_tokens": 3},
        {"stop": ["world"]},
        {"n": 2},
        {"logprobs": True},
        {"model": "tiny:shallow"},
        {"messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]},
        {"messages": [{"role": "user", "content": "hello "}]},
        {"fenhe": {"while_loading": "degrade"}},
    ],
)
def test_what_changes_the_answer_is_another_answer(start: Start, change: dict[str, Any]) -> None:
    served = start()
    body = {"model": "auto", "messages": [{"role": "user", "content": "hello"}], **GREEDY}
    answers = [served.post("/v1/chat/completions", body | one) for one in ({}, change, {}, change)]
    assert [outcome(response) for response in answers] == ["miss", "miss", "hit", "hit"]
    assert words(answers[1]) == words(answers[3])


@pytest.mark.parametrize("first_is_stream", [True, False])
@pytest.mark.parametrize("n", [1, 2])
def test_stream_and_whole_body_serve_each_other(start: Start, first_is_stream: bool, n: int) -> None:
    served = start()
    fields: dict[str, Any] = {"n": n, "logprobs": True, "top_logprobs": 2, "max_tokens": 9, **GREEDY}
    answers = {}
    for is_stream in (first_is_stream, not first_is_stream):
        options: dict[str, Any] = {"stream_options": {"include_usage": True}} if is_stream else {}
        answers[is_stream] = served.chat("accents long", stream=is_stream, **options, **fields)
    assert outcome(answers[not first_is_stream]) == "hit"
    *chunks, done = events_of(answers[True].content)
    whole = answers[False].json()
    assert done == "[DONE]"
    assert [chunk["choices"][0]["delta"].get("role") for chunk in chunks[:n]] == ["assistant"] * n
    assert chunks[-1]["usage"] == whole["usage"]
    assert chunks[-1]["choices"] == []
    assert len({chunk["id"] for chunk in chunks}) == 1
    for choice in whole["choices"]:
        mine = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert "".join(c["delta"].get("content", "") for c in mine) == choice["message"]["content"]
        logprobs = [token for c in mine if c["logprobs"] for token in c["logprobs"]["content"]]
        assert logprobs == choice["logprobs"]["content"]
        assert [c["finish_reason"] for c in mine if c["finish_reason"]] == [choice["finish_reason"]]


def test_official_client_reads_a_hit_as_a_stream(start: Start) -> None:
    served = start()
    texts = []
    for _ in range(2):
        stream = served.client.chat.completions.create(
            model="auto", messages=[{"role": "user", "content": "long"}], stream=True, temperature=0
        )
        texts.append("".join(chunk.choices[0].delta.content or "" for chunk in stream))
    assert texts[0] == texts[1] != ""
    assert num_asked(served) == 1


def test_text_completions_with_an_echo_and_logprobs_are_kept_too(start: Start) -> None:
    served = start()
    bodies = [
        served.post("/v1/completions", {"model": "auto", "prompt": ["a", "b"], **GREEDY, **more})
        for more in ({}, {"echo": True}, {"echo": True, "stream": True})
    ]
    assert [outcome(body) for body in bodies] == ["miss", "hit", "hit"]
    assert bodies[1].json()["choices"][1]["text"] == "b" + bodies[0].json()["choices"][1]["text"]


def test_client_s_cache_control_is_kept_to(start: Start) -> None:
    served = start()

    def said(directive: str) -> str:
        return outcome(served.chat("hello", headers={"cache-control": directive}, **GREEDY))

    assert [said("no-store"), said("no-cache"), said("max-age=60")] == ["bypass", "bypass", "hit"]
    assert [said("max-age=0"), said("no-store"), ask(served)] == ["miss", "bypass", "hit"]
    assert num_asked(served) == 4


def test_failed_generations_are_not_kept(start: Start) -> None:
    script = {"broken": Line(pieces=("a", "b"), error=StepFailed("the forward pass failed"))}
    served = start(script)
    assert served.chat("broken", **GREEDY).status_code == 500
    served.engine._script["broken"] = Line()
    assert [ask(served, "broken"), ask(served, "broken")] == ["miss", "hit"]


def test_answer_of_a_shallower_path_is_not_kept(start: Start) -> None:
    served = start(is_loaded=False)
    served.engine.load(3)
    fields = {"fenhe": {"while_loading": "degrade", "path": "full"}, **GREEDY}
    first = served.chat("hello", **fields)
    served.engine.load(5)
    second = served.chat("hello", **fields)
    assert (outcome(first), first.headers["x-fenhe-path"]) == ("miss", "shallow")
    assert (outcome(second), second.headers["x-fenhe-path"]) == ("miss", "full")


def test_hit_is_served_under_overload(start: Start) -> None:
    served = start(limits=Limits(max_requests=1))
    assert ask(served) == "miss"
    with streaming(served, "slow"):
        assert served.chat("other", **GREEDY).status_code == 429
        assert ask(served) == "hit"


@pytest.mark.parametrize("is_stream", [True, False])
def test_same_requests_at_once_cost_one_generation(start: Start, is_stream: bool) -> None:
    served = start({"paced": PACED})
    answers = at_once(served, 12, stream=is_stream)
    assert sorted(map(outcome, answers)) == ["join"] * 11 + ["miss"]
    assert num_asked(served) == 1
    assert len({response.headers["x-request-id"] for response in answers}) == 12
    if not is_stream:
        assert {words(response) for response in answers} == {"".join(PACED.pieces)}
        assert len({response.json()["id"] for response in answers}) == 12
    assert served.chat("paced", **GREEDY).headers["x-fenhe-cache"] == "hit"


def test_stream_is_joined_live(start: Start) -> None:
    served = start({"gated": Line(pieces=("a",) * 100, delay_s=0.05)})
    with streaming(served, "gated") as first, streaming(served, "gated") as second:
        assert [outcome(first), outcome(second)] == ["miss", "join"]
        assert b"assistant" in next(second.iter_raw())
        assert served.engine.status().num_running == 1


def test_generation_outlives_the_client_that_began_it(start: Start) -> None:
    served = start({"paced": PACED})
    with contextlib.ExitStack() as leader:
        parts = leader.enter_context(streaming(served, "paced")).iter_raw()
        next(parts)
        with streaming(served, "paced") as second:
            assert outcome(second) == "join"
            leader.close()
            text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in events_of(second.read())[:-1])
    assert text == "".join(PACED.pieces)
    assert served.engine.aborted == []
    assert ask(served, "paced") == "hit"


def test_generation_ends_with_the_last_client(start: Start) -> None:
    served = start()
    with streaming(served, "slow"), streaming(served, "slow") as second:
        assert outcome(second) == "join"
    assert until(lambda: served.engine.status().num_running == 0)
    assert until(lambda: len(served.engine.aborted) == 1)
    assert until(lambda: len(served.context.cache.flights) == 0)
    assert served.student.bridge.num_streams == 0
    assert value(served, "fenhe_cache_stored_total") == 0


class Turnstile:
    """Lets submissions wait on the loop's side until the test has seen all requests arrive."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._open = threading.Event()
        self.num_waiting = 0
        original = Supplier._submit

        async def submit(supplier: Supplier, outcome: Outcome) -> Supply:
            self.num_waiting += 1
            while not self._open.is_set():
                await asyncio.sleep(0.005)
            return await original(supplier, outcome)

        monkeypatch.setattr(Supplier, "_submit", submit)

    def open(self) -> None:
        self._open.set()


def shares(served: Served) -> int:
    return sum(flight.num_shares for flight in served.context.cache.flights._by_key.values())


def test_leader_that_leaves_before_it_began_is_followed_by_the_next(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = start()
    turnstile = Turnstile(monkeypatch)
    body = {"model": "auto", "messages": [{"role": "user", "content": "hello"}], **GREEDY}
    leader = http.client.HTTPConnection(served.url.removeprefix("http://"))
    with ThreadPoolExecutor(3) as pool:
        leader.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
        assert until(lambda: turnstile.num_waiting == 1)
        rest = [pool.submit(served.chat, "hello", **GREEDY) for _ in range(3)]
        assert until(lambda: shares(served) == 4)
        leader.close()
        assert until(lambda: shares(served) == 3)
        turnstile.open()
        assert sorted(outcome(future.result()) for future in rest) == ["join", "join", "miss"]
    assert num_asked(served) == 1
    assert turnstile.num_waiting == 2


def test_leader_that_is_refused_is_followed_by_the_next(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    served = start({"full house": Line(refusal=QueueFull("too many", retry_after_s=1.0))})
    turnstile = Turnstile(monkeypatch)
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(served.chat, "full house", **GREEDY) for _ in range(4)]
        assert until(lambda: shares(served) == 4)
        turnstile.open()
        assert [future.result().status_code for future in answers] == [429] * 4
    assert len(served.context.cache.flights) == 0


@pytest.fixture
def narrow(start: Start) -> Served:
    """A server that runs one sequence at a time."""
    return start(engine_config=EngineConfig(max_running=1, max_waiting=16), max_running=1)


def test_urgent_request_does_not_wait_for_the_turn_of_one_that_is_not(narrow: Served) -> None:
    admission = narrow.student.admission.turns
    with ThreadPoolExecutor(2) as pool:
        with streaming(narrow, "slow"):
            low = pool.submit(narrow.chat, "hello", fenhe={"priority": "low"}, **GREEDY)
            assert until(lambda: admission.num_waiting_in(Priority.LOW) == 1)
            high = pool.submit(narrow.chat, "hello", fenhe={"priority": "high"}, **GREEDY)
            assert until(lambda: admission.num_waiting_in(Priority.HIGH) == 1)
        assert [outcome(future.result()) for future in (high, low)] == ["miss", "miss"]


def test_request_with_little_time_does_not_wait_for_the_turn_of_one_with_more(narrow: Served) -> None:
    admission = narrow.student.admission.turns
    with ThreadPoolExecutor(3) as pool:
        with streaming(narrow, "slow"):
            patient = pool.submit(narrow.chat, "hello", **GREEDY)
            assert until(lambda: admission.num_waiting == 1)
            hasty = pool.submit(narrow.chat, "hello", headers={"x-fenhe-deadline-ms": "15000"}, **GREEDY)
            assert until(lambda: admission.num_waiting == 2)
            follower = pool.submit(narrow.chat, "hello", **GREEDY)
            assert until(lambda: shares(narrow) == 3)
        assert [outcome(future.result()) for future in (hasty, patient)] == ["miss", "miss"]
        assert outcome(follower.result()) in ("join", "hit")
    assert len(narrow.context.cache.flights) == 0


def test_kept_answer_does_not_wait_for_the_turn_of_one_who_wants_a_fresh_one(narrow: Served) -> None:
    assert ask(narrow) == "miss"
    with ThreadPoolExecutor(1) as pool:
        with streaming(narrow, "slow"):
            fresh = pool.submit(narrow.chat, "hello", headers={"cache-control": "max-age=0"}, **GREEDY)
            assert until(lambda: narrow.student.admission.turns.num_waiting == 1)
            assert ask(narrow) == "hit"
        assert outcome(fresh.result()) == "miss"


def test_next_in_line_looks_again_for_what_was_kept_meanwhile(narrow: Served) -> None:
    admission = narrow.student.admission.turns
    choice = Choice(text="kept", logprobs=(), reason=FinishReason.STOP, path="full", usage=NONE, stop=None)
    with ThreadPoolExecutor(2) as pool, streaming(narrow, "slow"):
        with httpx.Client(base_url=narrow.url) as http:
            body = {"model": "auto", "messages": [{"role": "user", "content": "hello"}], **GREEDY}
            leader = pool.submit(http.post, "/v1/chat/completions", json=body, timeout=1.0)
            assert until(lambda: admission.num_waiting == 1)
            follower = pool.submit(narrow.chat, "hello", **GREEDY)
            assert until(lambda: shares(narrow) == 3)
            key = list(narrow.context.cache.flights._by_key)[-1][0]
            kept = encode_entry(Entry(stored_s=time.time(), choices=(choice,)))
            assert asyncio.run(narrow.context.cache.store.put(key, kept))
            with pytest.raises(httpx.ReadTimeout):
                leader.result()
        assert words(follower.result()) == "kept"


@pytest.mark.parametrize("num_failures", [1, 9])
def test_followers_of_a_failed_generation_try_once_more(start: Start, num_failures: int) -> None:
    broken = Line(pieces=("a",) * 4, delay_s=0.1, error=StepFailed("the forward pass failed"))
    served = start({"paced": broken})
    submit: Callable[..., None] = served.engine.submit

    def count(request: Any) -> None:
        if num_asked(served) >= num_failures:
            served.engine._script["paced"] = Line(pieces=("fine",))
        submit(request)

    served.engine.submit = count  # type: ignore[method-assign]
    statuses = sorted(response.status_code for response in at_once(served, 5))
    assert statuses == ([200] * 4 + [500] if num_failures == 1 else [500] * 5)
    assert num_asked(served) == 2
    assert served.engine.status().num_running == 0
    assert served.context.cache.outcomes == {"miss": 1, "join": 4}


def test_lines_about_a_shared_generation_name_the_request(
    start_pool: StartPool, caplog: pytest.LogCaptureFixture
) -> None:
    sick = {"script": {"paced": Line(refusal=EngineUnhealthy("stopping"))}}
    broken = {"script": {"paced": Line(pieces=("a",) * 4, delay_s=0.1, error=StepFailed("failed"))}}
    served = start_pool({"one": (), "two": (), "three": ()}, one=sick, two=sick, three=broken)
    caplog.set_level(logging.INFO, "server.generation")
    ids = {response.headers["x-request-id"] for response in at_once(served, 2)}
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("server.generation.")]
    events = {line.partition(" id=")[0] for line in lines}
    assert events == {
        "student gave way",
        "fallback could not take over",
        "shared generation failed, trying once more",
    }
    assert all(any(f" id={one} " in line for one in ids) for line in lines)


def test_stream_that_fails_at_the_second_try_is_ended_in_its_own_words(
    start_pool: StartPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The follower joins what its leader fell back to, and at its second try is answered by the first student."""
    sick, broken = Line(refusal=EngineUnhealthy("stopping")), Line(pieces=(), error=StepFailed("broken"))
    served = start_pool({"one": (), "two": ()}, one={"script": {"paced": sick}}, two={"script": {"paced": broken}})
    submit: Callable[..., None] = served.engine.submit

    def recover(request: Any) -> None:
        try:
            submit(request)
        finally:
            served.engine._script["paced"] = Line(pieces=("a",) * 4, delay_s=0.1, error=StepFailed("broken"))

    served.engine.submit = recover  # type: ignore[method-assign]
    turnstile = Turnstile(monkeypatch)
    body = {"model": "auto", "input": "paced", "stream": True, **GREEDY}
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(served.post, "/v1/responses", body) for _ in range(2)]
        assert until(lambda: shares(served) == 2)
        turnstile.open()
    refused, failed = sorted((future.result() for future in answers), key=lambda response: -response.status_code)
    assert (refused.status_code, failed.status_code) == (500, 200)
    events = typed_events(failed.content)
    assert [event["sequence_number"] for _, event in events] == list(range(len(events)))
    assert events[-1][0] == "response.failed"
    assert events[-1][1]["response"]["model"] == events[0][1]["response"]["model"] == "one"
    assert events[-1][1]["response"]["output"][0]["content"][0]["text"] == "aaaa"


def test_failure_inside_a_shared_stream_is_told_to_all(start: Start) -> None:
    served = start({"paced": Line(pieces=("a",) * 6, delay_s=0.1, error=StepFailed("the forward pass failed"))})
    answers = at_once(served, 3, stream=True)
    assert {events_of(response.content)[-1]["error"]["code"] for response in answers} == {"step_failed"}


def test_late_answer_is_late_for_each_by_itself(start: Start) -> None:
    served = start(limits=Limits(request_timeout_s=0.4))
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(served.chat, "slow", **GREEDY) for _ in range(2)]
        assert [future.result().status_code for future in answers] == [504, 504]
    assert num_asked(served) == 1
    assert until(lambda: served.engine.status().num_running == 0)


def test_followers_answer_as_the_fallback_that_took_over(start_pool: StartPool) -> None:
    sick = {"script": {"paced": Line(refusal=EngineUnhealthy("stopping"))}}
    served = start_pool({"one": (), "two": ()}, one=sick, two={"script": {"paced": PACED}})
    answers = at_once(served, 4, logprobs=True)
    assert {response.headers["x-fenhe-student"] for response in answers} == {"two"}
    assert {response.json()["model"] for response in answers} == {"two"}
    assert sorted(map(outcome, answers)) == ["join"] * 3 + ["miss"]
    assert len(served.engines["two"].submitted) == 1
    assert served.chat("paced", logprobs=True, **GREEDY).headers["x-fenhe-cache"] == "miss"


@pytest.fixture
def tenants(student: TinyStudent, tmp_path: Path) -> Iterator[Served]:
    """A server with the keys `a` and `a2` of one tenant, and `b` of another."""
    tables = [
        f'[[key]]\nname = "{key}"\nsha256 = "{hashlib.sha256(key.encode()).hexdigest()}"\ntenant = "{key[0]}"\n'
        for key in ("a", "a2", "b")
    ]
    file = tmp_path / "keys.toml"
    file.write_text("".join(tables))
    with serve(student, ServerConfig(keys=KeysConfig(file=file)), {"paced": PACED}) as running:
        yield running


def test_no_tenant_sees_that_another_asked(tenants: Served) -> None:
    def ask_as(key: str) -> str:
        return outcome(tenants.chat("hello", headers={"authorization": f"Bearer {key}"}, **GREEDY))

    assert [ask_as(key) for key in ("a", "b", "a2", "a", "b")] == ["miss", "miss", "hit", "hit", "hit"]
    salts = [request.cache_salt for request in tenants.engine.submitted]
    assert salts == ["a", "b"], "the work is done again, and on no prefix of another's"


def test_no_tenant_joins_what_runs_for_another(tenants: Served) -> None:
    auth = {"authorization": "Bearer a"}
    with streaming(tenants, "paced", headers=auth):
        other = tenants.chat("paced", headers={"authorization": "Bearer b"}, **GREEDY)
    assert outcome(other) == "miss"
    assert num_asked(tenants) == 2


@pytest.fixture
def administered(student: TinyStudent) -> Iterator[Served]:
    key = hashlib.sha256(ADMIN_KEY.encode()).hexdigest()
    with serve(student, ServerConfig(admin=AdminConfig(key_sha256=key)), {"paced": PACED}) as running:
        yield running


@pytest.mark.parametrize(
    ("query", "num_flushed", "again"),
    [
        ("", 2, ["miss", "miss"]),
        ("?student=tiny", 2, ["miss", "miss"]),
        ("?prefix=tiny:shallow:", 1, ["hit", "miss"]),
        ("?student=tin", 0, ["hit", "hit"]),
        ("?prefix=", 2, ["miss", "miss"]),
    ],
)
def test_flush_forgets_what_it_names(administered: Served, query: str, num_flushed: int, again: list[str]) -> None:
    models = ("tiny:full", "tiny:shallow")
    for model in models:
        ask(administered, model=model)
    response = administered.http.delete(f"/admin/cache{query}", headers=ADMIN)
    assert (response.status_code, response.json()) == (200, {"flushed": num_flushed})
    assert [ask(administered, model=model) for model in models] == again


@pytest.mark.parametrize("directive", ["max-age=60", "no-cache"])
def test_flush_reaches_what_is_being_generated(administered: Served, directive: str) -> None:
    with streaming(administered, "paced", headers={"cache-control": directive}) as response:
        assert administered.http.delete("/admin/cache", headers=ADMIN).json() == {"flushed": 0}
        response.read()
    assert until(lambda: not administered.context.cache._keeping)
    assert ask(administered, "paced") == "miss"


def test_strange_value_in_the_store_is_as_good_as_none(start: Start) -> None:
    served = start()
    first = served.chat("hello", **GREEDY)
    values = served.context.cache.store._values  # type: ignore[attr-defined]
    assert until(lambda: len(values) == 1)
    for key, kept in list(values.items()):
        values[key] = kept.replace(b"\xa4full", b"\xa4a\r\nb")
    second = served.chat("hello", **GREEDY)
    assert (outcome(second), words(second)) == ("miss", words(first))
    assert served.context.cache.num_unreadable == 1


@pytest.mark.parametrize("query", ["?student=tiny&prefix=x", "?prefix=a&prefix=b", "?path=full", "?student="])
def test_flush_refuses_what_is_unclear(administered: Served, query: str) -> None:
    ask(administered)
    assert administered.http.delete(f"/admin/cache{query}", headers=ADMIN).status_code == 400
    assert ask(administered) == "hit"


def test_flush_needs_the_admin_key(administered: Served) -> None:
    ask(administered)
    assert administered.http.delete("/admin/cache").status_code == 401
    assert ask(administered) == "hit"


def test_metrics_count_what_the_cache_did(start: Start) -> None:
    served = start({"paced": PACED})
    for prompt in ("hello", "hello", "long"):
        ask(served, prompt)
    ask(served, temperature=1)
    at_once(served, 3)
    requests = "fenhe_cache_requests_total"
    counted = {one: value(served, requests, outcome=one) for one in ("hit", "miss", "join", "bypass")}
    assert counted == {"hit": 1, "miss": 3, "join": 2, "bypass": 1}
    assert until(lambda: value(served, "fenhe_cache_entries") == 3)
    assert value(served, "fenhe_cache_stored_total") == 3
    assert value(served, "fenhe_cache_bytes") > 3 * 512
    assert value(served, "fenhe_cache_evictions_total", want="room") == 0
    assert value(served, "fenhe_cache_generations") == 0
    assert value(served, "vllm:request_params_n_count") == 4


def test_cache_can_be_switched_off(student: TinyStudent) -> None:
    with serve(student, ServerConfig(cache=CacheConfig(enabled=False))) as served:
        assert [ask(served), ask(served, fenhe={"cache": True})] == ["bypass", "bypass"]


def test_settings_of_the_cache_are_read_and_checked() -> None:
    environ = {"FENHE_CACHE": "/somewhere", "FENHE_CACHE__URL": "redis://host", "FENHE_CACHE__TTL_S": "5"}
    config = load_config({"cache.max_bytes": "1000", "cache.max_entry_bytes": "10"}, environ)
    assert config.cache == CacheConfig(url="redis://host", ttl_s=5, max_bytes=1000, max_entry_bytes=10)
    with pytest.raises(Exception, match=r"cache\.url must begin with") as caught:
        load_config({}, {"FENHE_CACHE__URL": "http://secret@host"})
    assert "secret" not in str(caught.value)


def test_semantic_cache_answers_what_says_nearly_the_same(student: TinyStudent) -> None:
    with serve(student, ServerConfig(cache=CacheConfig(semantic={"fact": 0.9}))) as served:
        first, second = (served.chat(f"what is a fact of nature{end}", **GREEDY) for end in ("", "?"))
        assert (outcome(first), outcome(second)) == ("miss", "hit")
        assert 0.9 < float(second.headers["x-fenhe-similarity"]) < 1.0
        assert "x-fenhe-similarity" not in first.headers
        assert ask(served, "what is a fact of 2 natures") == "miss"
        assert ask(served, "what is a fact of nature.", max_tokens=3) == "miss"
        system = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "what is a fact of nature."}]
        assert outcome(served.post("/v1/chat/completions", {"model": "auto", "messages": system, **GREEDY})) == "miss"
        assert ask(served, "what is a fact of nature ?", fenhe={"cache": False}) == "bypass"
        assert value(served, "fenhe_cache_similar_hits_total") == 1


def test_semantic_cache_is_off_by_default_and_for_other_tasks(student: TinyStudent, start: Start) -> None:
    asked = ("what is a fact of nature", "what is a fact of nature?")
    served = start()
    assert [ask(served, prompt) for prompt in asked] == ["miss", "miss"]
    with serve(student, ServerConfig(cache=CacheConfig(semantic={"legal": 0.9}))) as served:
        assert [ask(served, prompt) for prompt in asked] == ["miss", "miss"]


def test_semantic_cache_never_gives_scores_of_another_prompt(student: TinyStudent) -> None:
    with serve(student, ServerConfig(cache=CacheConfig(semantic={"fact": 0.9}))) as served:
        body = {"model": "auto", "echo": True, "logprobs": 1, "max_tokens": 1, **GREEDY}
        asked = ("what is a fact of nature", "what is a fact of nature?")
        answers = [served.post("/v1/completions", {"prompt": prompt, **body}) for prompt in asked]
    assert [outcome(response) for response in answers] == ["miss", "miss"]
    for prompt, response in zip(asked, answers, strict=True):
        assert "".join(response.json()["choices"][0]["logprobs"]["tokens"]).startswith(prompt)


def test_semantic_cache_forgets_what_was_flushed(student: TinyStudent) -> None:
    key = hashlib.sha256(ADMIN_KEY.encode()).hexdigest()
    config = ServerConfig(admin=AdminConfig(key_sha256=key), cache=CacheConfig(semantic={"fact": 0.9}))
    with serve(student, config) as served:
        assert ask(served, "what is a fact of nature") == "miss"
        assert served.http.delete("/admin/cache", headers=ADMIN).status_code == 200
        assert ask(served, "what is a fact of nature?") == "miss"


@pytest.mark.skipif(BINARY is None, reason=REASON)
def test_replicas_share_answers_and_outlive_their_store(student: TinyStudent, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        with redis_server(tmp_path) as url:
            config = ServerConfig(cache=CacheConfig(url=url, timeout_s=5.0, breaker_failures=2))
            one, two = (stack.enter_context(serve(student, config)) for _ in range(2))
            assert [ask(one), ask(two), ask(two)] == ["miss", "hit", "hit"]
            assert num_asked(two) == 0
            assert ask(two, logprobs=True) == "miss"
            assert until(lambda: value(two, "fenhe_cache_stored_total") == 1)
        assert [ask(two), ask(two), ask(two)] == ["miss"] * 3
        assert value(two, "fenhe_cache_breaker_open", operation="get") == 1
        assert num_asked(two) == 4


@pytest.mark.parametrize(
    "change", ["version", "source_sha256", "exits_sha256", "variants", "files", "is_verified", "kv_precision"]
)
def test_digest_of_a_student_changes_with_what_answers_depend_on(start: Start, change: str) -> None:
    served = start().student
    before = served.digest
    if change == "version":
        other = dataclasses.replace(served, version="another")
    elif change == "kv_precision":
        other = dataclasses.replace(served)
        other._status = dataclasses.replace(served.fixed, kv_precision="int8")
        assert other.fingerprint != served.fingerprint
    elif change == "is_verified":
        assert isinstance(served.student, TinyStudent)
        other = dataclasses.replace(served, student=dataclasses.replace(served.student, is_verified=False))
    else:
        value = ("1",) if change in ("variants", "files") else "1"
        manifest = msgspec.structs.replace(served.manifest, **{change: value})
        student = TinyStudent(folder=served.student.folder, manifest=manifest, tokenizer=make_tokenizer())
        other = dataclasses.replace(served, student=student)
    assert other.digest != before
    assert dataclasses.replace(served).digest == before
