"""The response to a generation request: one retry after joining another's generation, and counted once."""

import asyncio
import logging
from typing import Any

import pytest
from starlette.requests import Request
from starlette.types import Message, Scope

from engines.scripted import Line
from engines.sequence import GenerationRequest
from models.errors import DeadlineExceeded, StepFailed
from server.generation.answer import Answer, answer
from server.students.event_bridge import ClientGone
from server.students.grammars import Grammars
from server.telemetry.request_record import KEY, Record
from server.wire.chat import JsonObjectFormat
from tests.server.generation.conftest import Backend, Open

BROKEN = Line(pieces=("a",) * 3, delay_s=0.05, error=StepFailed("the forward pass failed"))


class Exchange:
    """One client: it waits until it leaves, and keeps what it was sent."""

    def __init__(self, key: str = "r") -> None:
        self.record = Record(id=key, key=key, time_limit_s=20.0)
        self.sent: list[Message] = []
        self._gone = asyncio.Event()

    @property
    def scope(self) -> Scope:
        return {"type": "http", "headers": [], KEY: self.record}

    async def receive(self) -> Message:
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        if message["type"] == "http.response.start":
            self.record.status = message["status"]

    def leave(self) -> None:
        self._gone.set()


async def run(backend: Backend, exchange: Exchange, **fields: Any) -> None:
    response = await answer(
        backend.context,
        backend.order(key=exchange.record.key, **fields),
        Request(exchange.scope, exchange.receive),
    )
    assert isinstance(response, Answer)
    await response(exchange.scope, exchange.receive, exchange.send)


def heal_after(backend: Backend, num_submitted: int) -> None:
    """Let the engine stop failing once it has accepted this many sequences."""
    engine = backend.engines["tiny"]
    submit = engine.submit

    def submit_and_heal(request: GenerationRequest) -> None:
        if len(engine.submitted) >= num_submitted:
            engine._script["hello"] = Line(pieces=("fine",))
        submit(request)

    engine.submit = submit_and_heal  # type: ignore[method-assign]


async def test_own_failure_is_not_tried_again(open_backend: Open) -> None:
    backend, exchange = open_backend({"tiny": {"hello": BROKEN}}), Exchange()
    heal_after(backend, 1)
    with pytest.raises(StepFailed):
        await run(backend, exchange)
    assert len(backend.engines["tiny"].submitted) == 1
    assert exchange.sent == []


async def test_follower_s_failure_is_tried_once_more_and_counted_once(open_backend: Open) -> None:
    backend = open_backend({"tiny": {"hello": BROKEN}})
    heal_after(backend, 1)
    leader, follower = Exchange("a"), Exchange("b")
    ends = await asyncio.gather(run(backend, leader), run(backend, follower), return_exceptions=True)
    assert [type(one) for one in ends] == [StepFailed, type(None)]
    assert b"fine" in follower.sent[1]["body"]
    assert follower.record.cache == "miss"
    assert backend.context.cache.outcomes == {"miss": 1, "join": 1}


async def test_follower_that_has_begun_to_stream_is_not_tried_again(open_backend: Open) -> None:
    backend = open_backend({"tiny": {"hello": BROKEN}})
    exchanges = [Exchange("a"), Exchange("b")]
    ends = await asyncio.gather(*(run(backend, one, stream=True) for one in exchanges), return_exceptions=True)
    assert [type(one) for one in ends] == [StepFailed, StepFailed]
    assert len(backend.engines["tiny"].submitted) == 1


async def test_follower_whose_time_is_up_is_not_tried_again(
    open_backend: Open, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "server.generation")
    backend = open_backend({"tiny": {"hello": Line(pieces=("a",) * 50, delay_s=0.05)}})
    leader, follower = Exchange("a"), Exchange("b")
    follower.record.time_limit_s = 0.3
    leading = asyncio.create_task(run(backend, leader))
    while not backend.context.num_streams:
        await asyncio.sleep(0)
    with pytest.raises(DeadlineExceeded):
        await run(backend, follower)
    assert follower.record.cache == "join"
    leader.leave()
    with pytest.raises(ClientGone):
        await leading
    assert len(backend.engines["tiny"].submitted) == 1
    assert backend.context.num_streams == 0
    assert "trying once more" not in caplog.text


async def test_client_that_leaves_is_not_compiled_for(open_backend: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, exchange = open_backend(), Exchange()
    waiting: list[str] = []

    async def wait(self: Grammars, source: str, schemas: Any, **limits: Any) -> Any:
        waiting.append(source)
        try:
            await asyncio.Event().wait()
        finally:
            waiting.remove(source)

    monkeypatch.setattr(Grammars, "compile", wait)
    running = asyncio.create_task(run(backend, exchange, response_format=JsonObjectFormat()))
    while not waiting:
        await asyncio.sleep(0)
    exchange.leave()
    with pytest.raises(ClientGone):
        await running
    assert waiting == []


async def test_client_that_leaves_ends_the_generation(open_backend: Open) -> None:
    backend, exchange = open_backend({"tiny": {"hello": Line(pieces=("a",) * 50, delay_s=0.05)}}), Exchange()
    running = asyncio.create_task(run(backend, exchange))
    while not backend.context.num_streams:
        await asyncio.sleep(0)
    exchange.leave()
    with pytest.raises(ClientGone):
        await running
    assert backend.engines["tiny"].aborted == ["r-0"]
    assert len(backend.context.cache.flights) == 0
