"""How an answer is sent: headers and body at once, or a stream, and nothing before the first event."""

import json
import time
from dataclasses import replace
from typing import Any

import pytest
from starlette.types import Message

from engines.sequence import FinishReason, SequenceEvent, TokenLogprob
from models.errors import ServingError, StepFailed, Stopping
from router.cache.entry import Entry
from router.cache.result_cache import Outcome
from router.cache.single_flight import Found
from router.decision import Reason, RouteDecision, Target
from server.generation.delivery import PIECE_BYTES, Delivery, cache_headers, route_headers
from server.generation.plan import Batch, Part
from server.generation.shared_generation import Kept
from server.generation.supply import Supply
from server.long_work import LongWork
from server.students.event_bridge import EventStream
from server.telemetry.request_record import Record
from server.wire.base import StreamOptions, UsageReply
from tests.router.flights import end, text
from tests.server.generation.conftest import Open

DECISION = RouteDecision(student="tiny", path="full", task="math", confidence=0.91234, reason=Reason.TASK)


class Writer:
    """Writes what it is asked for in plain words."""

    def opening(self) -> bytes:
        return b"<open>"

    def text(self, index: int, text: str) -> bytes:
        return f"<{index}:{text}>".encode()

    def part(self, part: Part) -> bytes:
        return f"<part {part.index}:{part.text}:{part.finish is not None}>".encode()

    def usage(self, usage: UsageReply) -> bytes:
        return f"<usage {usage.total_tokens}>".encode()

    def whole(self, parts: list[Part], usage: UsageReply) -> bytes:
        return json.dumps([part.text for part in parts]).encode()

    def failed(self, error: ServingError) -> bytes:
        return b"<failed>"


class Line:
    """A delivery without a client, which keeps what is sent."""

    def __init__(self, supply: Supply) -> None:
        self.sent: list[Message] = []
        self.record = Record(id="r", key="r")
        self.delivery = Delivery(
            supply=supply,
            decision=DECISION,
            record=self.record,
            send=self._send,
            started_s=time.monotonic(),
            long_work=LongWork(),
        )

    async def _send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def bodies(self) -> list[bytes]:
        return [message["body"] for message in self.sent[1:]]


async def make_line(open_backend: Open, *events: tuple[int, SequenceEvent], **fields: Any) -> Line:
    backend = open_backend()
    plan = replace((await backend.supplier(backend.order(**fields))).plan, writer=Writer())
    stream = EventStream(Kept(), len(plan.job.requests))
    for index, event in events:
        stream.push(index, event)
    return Line(Supply(stream=stream, plan=plan, outcome=Outcome.MISS))


async def deliver(line: Line) -> None:
    await line.delivery.run(await line.delivery.supply.stream.take())


async def test_whole_answer_is_one_body_with_its_length(open_backend: Open) -> None:
    line = await make_line(open_backend, (0, text("an ")), (0, end(words="answer")))
    await deliver(line)
    assert line.bodies == [b'["an answer"]']
    assert line.headers["content-length"] == str(len(line.bodies[0]))
    assert line.headers["content-type"] == "application/json"
    assert int(line.headers["openai-processing-ms"]) >= 0
    assert (line.headers["x-fenhe-path"], line.headers["x-fenhe-cache"]) == ("full", "miss")
    assert (line.record.num_tokens, line.record.finish_reasons) == (2, ("stop",))


async def test_whole_answer_names_the_path_that_really_ran(open_backend: Open) -> None:
    line = await make_line(open_backend, (0, end(path="shallow")))
    await deliver(line)
    assert line.headers["x-fenhe-path"] == line.record.path == "shallow"


async def test_whole_answer_that_fails_sends_nothing(open_backend: Open) -> None:
    line = await make_line(open_backend, (0, text("half")), (0, end(FinishReason.ABORT)))
    with pytest.raises(Stopping):
        await deliver(line)
    assert line.sent == []


async def test_stream_begins_with_headers_and_ends_with_done(open_backend: Open) -> None:
    line = await make_line(open_backend, (0, text("one")), stream=True)
    stream = line.delivery.supply.stream
    first = await stream.take()
    stream.push(0, end(words="two"))
    await line.delivery.run(first)
    assert line.bodies == [b"<open><0:one>", b"<part 0:two:True>", b"data: [DONE]\n\n"]
    assert [message.get("more_body", False) for message in line.sent[1:]] == [True, True, False]
    assert line.headers["content-type"].startswith("text/event-stream")
    assert line.record.is_event_stream


async def test_stream_sends_what_came_together_in_one_piece_per_choice(open_backend: Open) -> None:
    events: Batch = [(0, text("a")), (1, text("b")), (0, text("c")), (1, end(words="d")), (0, end())]
    line = await make_line(open_backend, *events, stream=True, n=2)
    await deliver(line)
    assert line.bodies[0] == b"<open><part 0:ac:True><part 1:bd:True>"


async def test_stream_skips_events_that_have_nothing_to_show(open_backend: Open) -> None:
    line = await make_line(open_backend, (0, text("")), stream=True)
    stream = line.delivery.supply.stream
    first = await stream.take()
    logprob = TokenLogprob(token_id=1, logprob=-1.0, token_bytes=b"x")
    stream.push(0, SequenceEvent(sequence_id="s", logprobs=(logprob,)))
    stream.push(0, end())
    await line.delivery.run(first)
    assert line.bodies == [b"<open>", b"<part 0::True>", b"data: [DONE]\n\n"]


async def test_stream_tells_usage_only_to_those_who_asked(open_backend: Open) -> None:
    line = await make_line(open_backend, (0, end()), stream=True, stream_options=StreamOptions(include_usage=True))
    await deliver(line)
    assert line.bodies[-1].startswith(b"<usage 5>")


async def test_stream_that_fails_is_left_open_for_its_error(open_backend: Open) -> None:
    line = await make_line(open_backend, (0, text("one")), stream=True)
    stream = line.delivery.supply.stream
    first = await stream.take()
    stream.push(0, end(FinishReason.ERROR))
    with pytest.raises(StepFailed):
        await line.delivery.run(first)
    assert line.sent[-1]["more_body"]
    assert line.record.frame_error is not None
    assert line.record.frame_error(StepFailed("x")) == b"<failed>"


@pytest.mark.parametrize("reason", [FinishReason.ERROR, FinishReason.ABORT])
async def test_stream_that_fails_sends_what_came_together_with_the_failure(
    open_backend: Open, reason: FinishReason
) -> None:
    line = await make_line(open_backend, (0, text("one")), stream=True, n=2)
    stream = line.delivery.supply.stream
    first = await stream.take()
    for event in [(1, text("a")), (0, text("two")), (1, end(words="b")), (0, end(reason, words="!")), (1, text("no"))]:
        stream.push(*event)
    with pytest.raises((StepFailed, Stopping)):
        await line.delivery.run(first)
    assert line.bodies == [b"<open><0:one>", b"<part 1:ab:True><part 0:two!:False>"]


async def test_stream_that_fails_at_once_sends_nothing(open_backend: Open) -> None:
    """It still has the status of its failure, and a client may try again."""
    line = await make_line(open_backend, (0, text("one")), (0, end(FinishReason.ERROR)), stream=True)
    with pytest.raises(StepFailed):
        await deliver(line)
    assert line.sent == []


def test_route_headers_leave_out_a_confidence_nobody_has() -> None:
    target = Target(student="zwei", path="full", reason=Reason.UNCLASSIFIED)
    unsure = RouteDecision(student="eins", path="full", reason=Reason.GENERAL)
    names = [name for name, _ in route_headers(unsure, target, "shallow")]
    assert b"x-fenhe-confidence" not in names
    told = dict(route_headers(DECISION, target, "shallow"))
    assert told[b"x-fenhe-confidence"] == b"0.912"
    assert (told[b"x-fenhe-student"], told[b"x-fenhe-path"]) == (b"zwei", b"shallow")


def test_route_headers_are_ascii() -> None:
    target = Target(student="größe", path="full", reason=Reason.GENERAL)
    assert dict(route_headers(DECISION, target, "full"))[b"x-fenhe-student"] == b"gr??e"


@pytest.mark.parametrize(
    ("similarity", "expected"), [(None, {"age": "7"}), (0.95678, {"x-fenhe-similarity": "0.957", "age": "7"})]
)
def test_cache_headers_tell_a_hit_s_age_and_likeness(similarity: float | None, expected: dict[str, str]) -> None:
    found = Found(Entry(stored_s=time.time() - 7.5, choices=()), similarity)
    told = {name.decode(): value.decode() for name, value in cache_headers(Outcome.HIT, found)}
    assert told == {"x-fenhe-cache": "hit", **expected}
    assert cache_headers(Outcome.JOIN, None) == [(b"x-fenhe-cache", b"join")]


@pytest.mark.parametrize("num_bytes", [1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES])
@pytest.mark.parametrize("is_stream", [False, True])
async def test_long_bodies_are_sent_in_pieces(open_backend: Open, num_bytes: int, is_stream: bool) -> None:
    words = "abcdefgh" * num_bytes
    line = await make_line(open_backend, (0, end(words=words[:num_bytes])), stream=is_stream)
    await deliver(line)
    assert words[:num_bytes] in b"".join(line.bodies).decode()
    assert max(map(len, line.bodies)) <= PIECE_BYTES
    assert [message["more_body"] for message in line.sent[1:-1]] == [True] * (len(line.bodies) - 1)
    assert not line.sent[-1].get("more_body")
