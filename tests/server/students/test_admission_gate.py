"""Admission over HTTP: turns, deadlines, priorities, and what refused clients are told."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import httpx
import openai
import pytest

from engines.config import EngineConfig
from engines.scripted import Line
from engines.sequence import Finish, FinishReason, GenerationRequest, SamplingParams, SequenceEvent, Timings, Usage
from router.admission.admission import AdmissionConfig
from router.decision import Priority
from server.settings.config import Limits, ServerConfig
from server.students.admission_gate import need_of
from server.students.student import ServedStudent
from tests.server.conftest import (
    SCRIPT,
    Served,
    StartPool,
    TinyStudent,
    events_of,
    make_engine,
    open_scripted,
    run_server,
    until,
)

ONE_AT_A_TIME = EngineConfig(max_running=1, max_waiting=2)
HELD = {"hold": Line(pieces=("x ",) * 400, delay_s=0.02), "brief": Line(pieces=("y ",) * 40, delay_s=0.02)}


class Crowd:
    """Clients that ask at the same time, each in a thread of its own."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self._threads = ThreadPoolExecutor(16)
        self._asked: list[Future[httpx.Response]] = []

    def ask(self, prompt: str, *, headers: dict[str, str] | None = None, **fields: Any) -> "Future[httpx.Response]":
        """Send a request and wait until it is queued, running or answered."""
        before = self._num_seen()
        asked = self._threads.submit(self.served.chat, prompt, headers=headers, max_tokens=300, **fields)
        self._asked.append(asked)
        assert until(lambda: asked.done() or self._num_seen() > before)
        return asked

    def _num_seen(self) -> int:
        return len(self.served.engine.submitted) + self.num_queued

    @property
    def num_queued(self) -> int:
        return self.served.student.admission.turns.num_waiting

    def close(self) -> None:
        """End what runs, and what takes its turn then, until everyone has an answer."""
        for asked in self._asked:
            while not asked.done():
                for sequence in list(self.served.engine._running):
                    self.served.engine.abort(sequence)
                wait([asked], 0.01)
        self._threads.shutdown()


Gather = Callable[..., Crowd]


@pytest.fixture
def gather(student: TinyStudent) -> Iterator[Gather]:
    crowds: list[Crowd] = []
    servers: list[Any] = []

    def begin(config: ServerConfig | None = None) -> Crowd:
        engine = make_engine(SCRIPT | HELD)
        server = run_server([open_scripted(student, engine)], config or ServerConfig(engine=ONE_AT_A_TIME))
        servers.append(server)
        crowds.append(Crowd(server.__enter__()))
        return crowds[-1]

    yield begin
    for crowd in crowds:
        crowd.close()
    for server in servers:
        server.__exit__(None, None, None)


def code_of(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


def test_queue_is_served_in_turn_and_full_is_429(gather: Gather) -> None:
    crowd = gather()
    first = crowd.ask("brief")
    queued = [crowd.ask(f"brief {index}") for index in range(2)]
    assert crowd.num_queued == 2
    assert len(crowd.served.engine.submitted) == 1  # what waits is not in the engine yet
    refused = crowd.served.chat("brief too", max_tokens=2)
    assert code_of(refused) == (429, "queue_full")
    assert int(refused.headers["retry-after"]) >= 1
    assert int(refused.headers["retry-after-ms"]) >= 1
    assert [one.result().status_code for one in (first, *queued)] == [200] * 3


def test_official_client_raises_on_a_full_queue_and_retries_when_told(gather: Gather) -> None:
    crowd = gather()
    crowd.ask("brief")
    crowd.ask("brief 1")
    crowd.ask("brief 2")
    ask: dict[str, Any] = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}
    with pytest.raises(openai.RateLimitError):
        crowd.served.client.chat.completions.create(**ask)
    answer = crowd.served.client.with_options(max_retries=5).chat.completions.create(**ask)
    assert answer.choices[0].message.content == "Hello, world!"


def test_tokens_bound_the_queue_too(gather: Gather) -> None:
    bounds = AdmissionConfig(max_running_tokens=400, max_queued_tokens=500)
    crowd = gather(ServerConfig(admission=bounds))
    crowd.ask("hold")
    crowd.ask("hello")
    assert crowd.num_queued == 1
    assert code_of(crowd.served.chat("hello again", max_tokens=300)) == (429, "queue_full")


def test_higher_priority_goes_first_and_low_is_shed(gather: Gather) -> None:
    crowd = gather()
    first = crowd.ask("brief")
    low = crowd.ask("brief low", fenhe={"priority": "low"})
    normal = crowd.ask("brief normal")
    high = crowd.ask("brief high", fenhe={"priority": "high"})
    assert code_of(low.result()) == (429, "queue_full")
    assert [one.result().status_code for one in (first, high, normal)] == [200] * 3
    texts = [
        crowd.served.student.tokenizer.decode(request.prompt_token_ids) for request in crowd.served.engine.submitted
    ]
    assert [word for text in texts for word in ("high", "normal", "low") if word in text] == ["high", "normal"]


def test_unknown_priority_names_the_choices(gather: Gather) -> None:
    response = gather().served.chat("hello", fenhe={"priority": "urgent"})
    assert response.status_code == 400
    assert all(priority.value in response.json()["error"]["message"] for priority in Priority)


@pytest.mark.parametrize("is_stream", [False, True])
def test_deadline_ends_what_runs(gather: Gather, is_stream: bool) -> None:
    crowd = gather()
    response = crowd.served.chat("hold", stream=is_stream, headers={"x-fenhe-deadline-ms": "200"})
    if is_stream:
        assert events_of(response.content)[-1]["error"]["code"] == "deadline_exceeded"
    else:
        assert code_of(response) == (504, "deadline_exceeded")
        assert response.headers["x-should-retry"] == "false"
    assert until(lambda: crowd.served.engine.status().num_running == 0)
    assert until(lambda: crowd.served.student.admission.turns.running.num_sequences == 0)


def test_deadline_ends_what_queues_and_the_engine_never_sees_it(gather: Gather) -> None:
    crowd = gather()
    crowd.ask("hold")
    response = crowd.served.chat("hello", headers={"x-fenhe-deadline-ms": "150"})
    assert code_of(response) == (504, "deadline_exceeded")
    assert len(crowd.served.engine.submitted) == 1
    assert crowd.num_queued == 0


def test_deadline_by_default_comes_from_the_settings(gather: Gather) -> None:
    crowd = gather(ServerConfig(admission=AdmissionConfig(default_deadline_s=0.2)))
    assert code_of(crowd.served.chat("hold")) == (504, "deadline_exceeded")


def test_deadline_never_goes_beyond_the_server_s(gather: Gather) -> None:
    crowd = gather(ServerConfig(limits=Limits(request_timeout_s=0.2)))
    response = crowd.served.chat("hold", headers={"x-fenhe-deadline-ms": "999999999"})
    assert code_of(response) == (504, "deadline_exceeded")


def teach(student: ServedStudent, num_tokens: int) -> None:
    """Let it have answered a short prompt alone, three times, a second a token."""
    sampling = SamplingParams(max_tokens=num_tokens)
    request = GenerationRequest(id="s", prompt_token_ids=(0,), path="full", sampling=sampling, needs_exact_head=True)
    pace = student.admission.pace
    finished_s = time.monotonic()
    begun_s = finished_s - num_tokens
    usage = Usage(num_prompt_tokens=1, num_cached_tokens=0, num_completion_tokens=num_tokens)
    times = Timings(queued_s=begun_s, admitted_s=begun_s, first_token_s=begun_s + 1.0, finished_s=finished_s)
    finish = Finish(reason=FinishReason.STOP, path="full", usage=usage, timings=times)
    pace.count_running(1, begun_s)
    for _ in range(3):
        pace.observe_finish(request, finish)
    pace.count_running(0, finished_s)


RUNS_ON: dict[str, Any] = {"max_tokens": 100, "ignore_eos": True}
HALF_A_MINUTE = {"x-fenhe-deadline-ms": "30000"}


def test_deadline_that_measured_answers_could_not_keep_is_refused_at_once(gather: Gather) -> None:
    crowd = gather()
    teach(crowd.served.student, 100)
    response = crowd.served.chat("hello", **RUNS_ON, headers=HALF_A_MINUTE)
    assert code_of(response) == (504, "deadline_exceeded")
    assert response.headers["x-should-retry"] == "false"
    assert "even alone it takes at least" in response.json()["error"]["message"]
    assert crowd.served.engine.submitted == []


def test_long_answers_refuse_no_short_deadline_on_an_idle_server(gather: Gather) -> None:
    crowd = gather()
    teach(crowd.served.student, 300)
    assert crowd.served.chat("hello", max_tokens=300, headers=HALF_A_MINUTE).status_code == 200


def test_deadline_that_the_queue_would_break_is_429_and_may_be_tried_again(gather: Gather) -> None:
    crowd = gather()
    crowd.ask("hold")
    crowd.ask("hold 1")
    crowd.served.student.admission.pace.drain.add(1, 10.0, time.monotonic())
    response = crowd.served.chat("hello", max_tokens=300, headers=HALF_A_MINUTE)
    assert code_of(response) == (429, "deadline_unreachable")
    assert response.headers["x-should-retry"] == "true"
    assert int(response.headers["retry-after"]) >= 1
    assert "queued before it" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ({"ignore_eos": True}, 40),
        ({}, 1),
        ({"min_tokens": 30}, 30),
        ({"ignore_eos": True, "stop": ("x",)}, 1),
        ({"ignore_eos": True, "stop": ("x",), "min_tokens": 30}, 30),
        ({"ignore_eos": True, "stop_token_ids": frozenset({3})}, 1),
    ],
)
def test_least_answer_is_what_nothing_can_shorten(sampling: dict[str, Any], expected: int) -> None:
    request = GenerationRequest(
        id="s", prompt_token_ids=(0,) * 100, path="full", sampling=SamplingParams(max_tokens=40, **sampling)
    )
    need = need_of(request, caches_prefixes=True)
    assert (need.num_answer_tokens, need.num_uncached_tokens) == (expected, 4)
    assert need_of(request, caches_prefixes=False).num_uncached_tokens == 100


def test_least_answer_to_a_request_for_none_is_none() -> None:
    request = GenerationRequest(id="s", prompt_token_ids=(0,), path="full", sampling=SamplingParams(max_tokens=0))
    assert need_of(request, caches_prefixes=True).num_answer_tokens == 0


@pytest.mark.parametrize("text", ["", "0", "-5", "1.5", "soon", "1e3", "9" * 13, "١"])
def test_deadline_nobody_can_read_is_a_400(gather: Gather, text: str) -> None:
    headers = [(b"x-fenhe-deadline-ms", text.encode())]
    body = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}
    response = gather().served.http.post("/v1/chat/completions", json=body, headers=headers)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "x-fenhe-deadline-ms")


def test_client_that_leaves_the_queue_makes_room(gather: Gather) -> None:
    crowd = gather()
    crowd.ask("hold")
    with pytest.raises(httpx.ReadTimeout):
        crowd.served.http.post(
            "/v1/completions", json={"model": "auto", "prompt": "hello"}, timeout=httpx.Timeout(5, read=0.1)
        )
    assert until(lambda: crowd.num_queued == 0)
    assert len(crowd.served.engine.submitted) == 1


def test_kept_answer_is_served_though_the_queue_is_full(gather: Gather) -> None:
    crowd = gather()
    again: dict[str, Any] = {"max_tokens": 300, "temperature": 0}
    assert crowd.served.chat("hello", **again).headers["x-fenhe-cache"] == "miss"
    for prompt in ("hold", "hold 1", "hold 2"):
        crowd.ask(prompt)
    assert crowd.served.chat("hello too", **again).status_code == 429
    hit = crowd.served.chat("hello", **again)
    assert (hit.status_code, hit.headers["x-fenhe-cache"]) == (200, "hit")


def test_time_at_the_door_counts_as_queued_in_every_figure(gather: Gather) -> None:
    crowd = gather()
    first, second = crowd.ask("hold"), crowd.ask("hello")
    assert crowd.num_queued == 1
    seen_s = time.monotonic()
    crowd.served.engine.abort(crowd.served.engine.submitted[0].id)
    assert (first.result().status_code, second.result().status_code) == (503, 200)
    queued_s = crowd.served.engine.submitted[1].queued_s
    assert queued_s is not None
    assert queued_s < seen_s


def test_what_queues_counts_as_waiting_and_as_open(gather: Gather) -> None:
    crowd = gather(ServerConfig(engine=ONE_AT_A_TIME, limits=Limits(max_requests=2)))
    crowd.ask("hold")
    crowd.ask("hello")
    metrics = crowd.served.http.get("/metrics").text
    assert 'vllm:num_requests_waiting{engine="0",model_name="tiny"} 1.0' in metrics
    assert 'fenhe_queued_requests{priority="normal",student="tiny"} 1.0' in metrics
    assert crowd.served.student.state().num_waiting == 1
    assert code_of(crowd.served.chat("hello")) == (429, "queue_full")


def test_refusals_are_counted_by_reason(gather: Gather) -> None:
    crowd = gather(ServerConfig(engine=EngineConfig(max_running=1, max_waiting=0)))
    crowd.ask("hold")
    assert crowd.served.chat("hello").status_code == 429
    metrics = crowd.served.http.get("/metrics").text
    assert 'fenhe_admission_refusals_total{code="queue_full",student="tiny"} 1.0' in metrics


def test_full_student_gives_way_to_another_that_has_room(start_pool: StartPool) -> None:
    config = ServerConfig(engine=EngineConfig(max_running=1, max_waiting=0))
    served = start_pool({"a": (), "b": ()}, config=config, a={"script": SCRIPT | HELD}, b={"script": SCRIPT | HELD})
    body = {"model": "auto", "prompt": "hold", "stream": True, "max_tokens": 300}
    with served.http.stream("POST", "/v1/completions", json=body) as first:
        parts = first.iter_raw()
        next(parts)
        other = served.chat("hello")
        assert other.status_code == 200
        assert other.headers["x-fenhe-student"] != first.headers["x-fenhe-student"]


def test_student_that_is_too_slow_gives_way_to_a_faster_one(start_pool: StartPool) -> None:
    served = start_pool({"a": (), "b": ()})
    teach(served.student, 100)
    answer = served.chat("hello", **RUNS_ON, headers=HALF_A_MINUTE)
    assert (answer.status_code, answer.headers["x-fenhe-student"]) == (200, "b")


def test_engine_that_stops_ends_what_queues(gather: Gather) -> None:
    crowd = gather()
    running, queued = crowd.ask("hold"), crowd.ask("hello")
    crowd.served.engine.stop(0.0)
    assert code_of(running.result()) == (503, "stopping")
    assert code_of(queued.result()) == (503, "engine_unhealthy")
    assert crowd.served.student.admission.turns.running.num_tokens == 0


def test_many_at_once_end_once_each_and_nothing_stays_held(gather: Gather) -> None:
    crowd = gather(ServerConfig(engine=EngineConfig(max_running=2, max_waiting=4)))
    waits = [{"x-fenhe-deadline-ms": text} for text in ("40", "5000", "5000")]
    with ThreadPoolExecutor(12) as threads:
        asked = [
            threads.submit(crowd.served.chat, f"brief {index}", headers=waits[index % 3], stream=index % 2 == 0)
            for index in range(48)
        ]
    statuses = {one.result().status_code for one in asked}
    assert 200 in statuses
    assert statuses <= {200, 429, 504}
    admission = crowd.served.student.admission.turns
    assert until(lambda: admission.running.num_tokens == admission.queued.num_tokens == 0)
    assert crowd.served.chat("hello", max_tokens=4).status_code == 200


def test_time_to_choose_tokens_counts_as_the_tokens_that_the_engine_computes_meanwhile(
    gather: Gather, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that computed 300 tokens in 6 s would have computed 100 in the 2 s that choosing took."""
    crowd = gather()
    engine, turns = crowd.served.engine, crowd.served.student.admission.turns
    real_status, real_end, real_release = engine.status, engine._end, turns.release
    extra: list[float] = []

    def status() -> Any:
        return dataclasses.replace(real_status(), busy_s=6.0, num_prompt_tokens=100, num_generation_tokens=200)

    def end(*arguments: Any) -> SequenceEvent:
        return _slow(real_end(*arguments))

    def release(ticket: Any, now_s: float, num_used: int = 0, num_extra: float = 0.0) -> None:
        extra.append(num_extra)
        real_release(ticket, now_s, num_used, num_extra)

    monkeypatch.setattr(engine, "status", status)
    monkeypatch.setattr(engine, "_end", end)
    monkeypatch.setattr(turns, "release", release)
    assert crowd.served.chat("hello").status_code == 200
    assert until(lambda: extra == [100.0])


def _slow(event: SequenceEvent) -> SequenceEvent:
    assert event.finish is not None
    timings = dataclasses.replace(event.finish.timings, choosing_s=2.0)
    return dataclasses.replace(event, finish=dataclasses.replace(event.finish, timings=timings))


@pytest.mark.parametrize(("priority", "rank"), [("low", -1), ("normal", 0), ("high", 1)])
def test_engine_is_told_the_priority(gather: Gather, priority: str, rank: int) -> None:
    crowd = gather()
    assert crowd.ask("hello", fenhe={"priority": priority}).result().status_code == 200
    assert [request.priority for request in crowd.served.engine.submitted] == [rank]
