"""Sends one request of a soak and judges what comes back."""

import asyncio
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx

from loadtest.ledger import Outcome
from loadtest.soak_kinds import COUNT, DEBUG, MESSAGES, RESPONSES, Sent

PATIENCE_S = 120.0
"""Longer than any answer may take: a client that still waits then was forgotten by the server."""
STOPS = ("end_turn", "max_tokens", "stop_sequence", "tool_use")
"""Why a message may end."""
TYPED_ENDS = ("response.completed", "response.incomplete", "message_stop")


async def send(client: httpx.AsyncClient, sent: Sent) -> Outcome:
    try:
        async with asyncio.timeout(PATIENCE_S):
            if sent.leaves_after == 0:
                return await _leave_early(client, sent)
            async with _open(client, sent) as response:
                return await _judge(response, sent)
    except TimeoutError:
        return Outcome(what="no answer", problem=f"nothing came within {PATIENCE_S:g} s")
    except httpx.HTTPError as error:
        return Outcome(what="broken", problem=f"the connection failed: {type(error).__name__}: {error}")


def _open(client: httpx.AsyncClient, sent: Sent) -> Any:
    headers = {"content-type": "application/json", **dict(sent.headers)}
    if sent.key:
        headers["authorization"] = f"Bearer {sent.key}"
    return client.stream(sent.method, sent.path, content=sent.body, headers=headers)


async def _leave_early(client: httpx.AsyncClient, sent: Sent) -> Outcome:
    async def read() -> None:
        async with _open(client, sent) as response:
            await response.aread()

    task = asyncio.create_task(read())
    await asyncio.sleep(0.02)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return Outcome(what="left")
    return Outcome(what="answered first")


async def _judge(response: httpx.Response, sent: Sent) -> Outcome:
    what, cache = str(response.status_code), response.headers.get("x-fenhe-cache")
    if response.status_code not in sent.allowed:
        text = (await response.aread())[:300]
        return Outcome(what=what, problem=f"status {what}: {text!r}")
    is_stream = response.headers.get("content-type", "").startswith("text/event-stream")
    if response.status_code == 200 and sent.is_stream and not is_stream:
        return Outcome(what=what, problem="a stream was asked for and none came")
    if is_stream:
        return await _judge_stream(response, sent, cache)
    body = await response.aread()
    return Outcome(what=what, cache=cache, problem=body_problem(body, response.status_code, sent))


def body_problem(body: bytes, status: int, sent: Sent) -> str | None:
    """What is wrong with a body that is no stream."""
    if sent.method == "GET" and sent.path != DEBUG:
        return None
    try:
        reply = json.loads(body)
    except ValueError:
        return f"not JSON: {body[:100]!r}"
    if status != 200:
        detail = reply.get("error") if isinstance(reply, dict) else None
        usual = {"message", "type"} if sent.path in (MESSAGES, COUNT) else {"message", "type", "param", "code"}
        has_shape = isinstance(detail, dict) and usual <= detail.keys()
        return None if has_shape else f"an error without the usual fields: {body[:200]!r}"
    return _reply_problem(reply, sent)


def _reply_problem(reply: dict[str, Any], sent: Sent) -> str | None:
    if sent.path == DEBUG:
        found = [problem for student in reply["students"] for problem in student["integrity"]]
        return f"the engine's records do not agree: {found}" if found else None
    if sent.path == RESPONSES:
        return None if reply.get("status") in ("completed", "incomplete") else f"status {reply.get('status')}"
    if sent.path == MESSAGES:
        return None if reply.get("stop_reason") in STOPS else f"stop_reason {reply.get('stop_reason')}"
    if sent.path == COUNT:
        return None if reply.get("input_tokens", 0) > 0 else f"counted {reply}"
    ends = [choice.get("finish_reason") for choice in reply.get("choices", ())]
    is_answer = sent.method == "POST" and sent.path.startswith("/v1/")
    return f"choices without an end: {ends}" if is_answer and not (ends and all(ends)) else None


async def _judge_stream(response: httpx.Response, sent: Sent, cache: str | None) -> Outcome:
    stream = StreamRecord()
    async for line in response.aiter_lines():
        if not line.startswith("data:"):
            continue
        stream.note(line.removeprefix("data:").strip())
        if sent.leaves_after is not None and stream.num_events >= sent.leaves_after:
            return Outcome(what="left", cache=cache)
    problem = stream.problem(is_typed=sent.path in (RESPONSES, MESSAGES), may_break=sent.may_break)
    return Outcome(what="error in stream" if stream.num_errors else "200", cache=cache, problem=problem)


@dataclass(slots=True, kw_only=True)
class StreamRecord:
    """What a stream contained. A good one ends every choice once and then says [DONE] once, or ends with one error; one
    of typed events has one end."""

    num_events: int = 0
    num_done: int = 0
    num_errors: int = 0
    num_typed_ends: int = 0
    ends: Counter[int] = field(default_factory=Counter)

    def note(self, data: str) -> None:
        self.num_events += 1
        if data == "[DONE]":
            self.num_done += 1
            return
        event = json.loads(data)
        self.num_errors += event.get("error") is not None or event.get("type") == "response.failed"
        self.num_typed_ends += event.get("type") in TYPED_ENDS
        for choice in event.get("choices", ()):
            self.ends[choice["index"]] += choice.get("finish_reason") is not None

    def problem(self, *, is_typed: bool, may_break: bool) -> str | None:
        if self.num_errors:
            is_right = may_break and self.num_errors == 1 and self.num_done <= 1
            return None if is_right else f"{self.num_errors} errors and {self.num_done} [DONE] in a stream"
        if is_typed:
            return None if self.num_typed_ends == 1 else f"{self.num_typed_ends} ends of a response"
        if self.num_done != 1:
            return f"{self.num_done} [DONE] in a stream"
        return (
            None
            if self.ends and set(self.ends.values()) == {1}
            else f"choices did not end exactly once each: {dict(self.ends)}"
        )
