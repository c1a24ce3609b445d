"""Sends one request of a soak and judges what comes back."""

import asyncio
import json
from typing import Any

import httpx

from loadtest.ledger import Outcome
from loadtest.soak_kinds import Sent

PATIENCE_S = 120.0
"""Longer than any answer may take: who waits past it was forgotten."""


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
    return Outcome(what=what, cache=cache, problem=_body_problem(body, response.status_code, sent))


def _body_problem(body: bytes, status: int, sent: Sent) -> str | None:
    if sent.method == "GET":
        return None
    try:
        reply = json.loads(body)
    except ValueError:
        return f"no JSON: {body[:100]!r}"
    if status != 200:
        detail = reply.get("error") if isinstance(reply, dict) else None
        has_shape = isinstance(detail, dict) and {"message", "type", "param", "code"} <= detail.keys()
        return None if has_shape else f"an error of another shape: {body[:200]!r}"
    ends = [choice.get("finish_reason") for choice in reply.get("choices", ())]
    return None if ends and all(ends) else f"choices without an end: {ends}"


async def _judge_stream(response: httpx.Response, sent: Sent, cache: str | None) -> Outcome:
    ends: dict[int, int] = {}
    num_chunks, num_done, num_errors = 0, 0, 0
    async for line in response.aiter_lines():
        if not line.startswith("data:"):
            continue
        num_chunks += 1
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            num_done += 1
            continue
        chunk = json.loads(data)
        num_errors += "error" in chunk
        for choice in chunk.get("choices", ()):
            ended = choice.get("finish_reason") is not None
            ends[choice["index"]] = ends.get(choice["index"], 0) + ended
        if sent.leaves_after is not None and num_chunks >= sent.leaves_after:
            return Outcome(what="left", cache=cache)
    return Outcome(what=_stream_end(num_errors), cache=cache, problem=_stream_problem(ends, num_done, num_errors))


def _stream_end(num_errors: int) -> str:
    return "error in stream" if num_errors else "200"


def _stream_problem(ends: dict[int, int], num_done: int, num_errors: int) -> str | None:
    """A stream ends once: every choice with one reason and one [DONE], or with one error."""
    if num_errors:
        return None if num_errors == 1 and num_done <= 1 else f"{num_errors} errors and {num_done} [DONE]"
    if num_done != 1:
        return f"{num_done} [DONE] in a stream"
    return None if ends and set(ends.values()) == {1} else f"choices ended so often: {ends}"
