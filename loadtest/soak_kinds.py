"""The kinds of requests a soak is made of: what each sends, when its client leaves, and what it may get back."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from loadtest import soak_faults
from loadtest.served import ADMIN_KEY, TENANT_KEYS
from loadtest.soak_faults import DamagedStudent, Fault, Reload

WORDS = ("river", "stone", "winter", "engine", "letter", "garden", "contract", "planet", "music", "window", "forest")
HOT_PROMPTS = tuple(f"Say one sentence about the {word}." for word in WORDS)

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
DEBUG = "/debug/state"
ANSWERED = frozenset({200})
BUSY = frozenset({429})
"""The server may refuse work while it has too much."""


@dataclass(slots=True, kw_only=True, frozen=True)
class Sent:
    """One request. Its client closes the connection after `leaves_after` chunks (0: before the first; None: never).

    `copies` of it are sent at once. `allowed` are the statuses that are right; `may_break` says whether its stream may
    end with an error. `key` None: one of the tenants'.
    """

    path: str
    body: bytes
    allowed: frozenset[int] = ANSWERED | BUSY
    headers: tuple[tuple[str, str], ...] = ()
    is_stream: bool = False
    leaves_after: int | None = None
    copies: int = 1
    method: str = "POST"
    may_break: bool = False
    key: str | None = None


Drawn = Sent | Fault | Reload | DamagedStudent


def _chat(content: str, **fields: Any) -> dict[str, Any]:
    return {"model": "auto", "messages": [{"role": "user", "content": content}], "max_tokens": 4, **fields}


def _post(body: dict[str, Any], path: str = CHAT, **fields: Any) -> Sent:
    return Sent(path=path, body=json.dumps(body).encode(), is_stream=bool(body.get("stream")), **fields)


def _words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(count)) + f" {rng.randrange(10**9)}"


def fresh(rng: random.Random) -> Sent:
    return _post(_chat(_words(rng, rng.randint(2, 30)), temperature=0, max_tokens=rng.randint(1, 6)))


def repeated(rng: random.Random) -> Sent:
    return _post(_chat(rng.choice(HOT_PROMPTS), temperature=0, max_tokens=6, stream=rng.random() < 0.3))


def at_once(rng: random.Random) -> Sent:
    return _post(_chat(_words(rng, 6), temperature=0, max_tokens=8, stream=rng.random() < 0.5), copies=4)


def sampled_stream(rng: random.Random) -> Sent:
    options = {"include_usage": True} if rng.random() < 0.5 else None
    body = _chat(_words(rng, 8), temperature=0.8, stream=True, stream_options=options, max_tokens=rng.randint(1, 8))
    return _post(body)


def two_choices(rng: random.Random) -> Sent:
    body = {"model": "auto", "prompt": _words(rng, 5), "n": 2, "max_tokens": 4, "stream": rng.random() < 0.5}
    return _post(body, COMPLETIONS)


def long_prompt(rng: random.Random) -> Sent:
    return _post(_chat(_words(rng, 250), temperature=0, max_tokens=2))


def dropped_stream(rng: random.Random) -> Sent:
    body = _chat(_words(rng, 8), stream=True, max_tokens=200, ignore_eos=True)
    return _post(body, leaves_after=rng.randint(1, 4))


def dropped_at_once(rng: random.Random) -> Sent:
    """Four clients share one answer and all leave: its generation must be aborted."""
    body = _chat(_words(rng, 8), temperature=0, stream=True, max_tokens=200, ignore_eos=True)
    return _post(body, leaves_after=rng.randint(1, 3), copies=4)


def dropped_before(rng: random.Random) -> Sent:
    return _post(_chat(_words(rng, 8), max_tokens=200, ignore_eos=True), leaves_after=0)


def late(rng: random.Random) -> Sent:
    body = _chat(_words(rng, 8), max_tokens=400, ignore_eos=True, stream=rng.random() < 0.3)
    headers = (("x-fenhe-deadline-ms", str(rng.choice([1, 30, 100, 400, 1500]))),)
    return _post(body, headers=headers, allowed=frozenset({200, 429, 504}), may_break=True)


def structured(rng: random.Random) -> Sent:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}, "size": {"enum": ["small", "large"]}},
        "required": ["ok", "size"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
    return _post(_chat(_words(rng, 4), response_format=wanted, max_tokens=40))


def called(rng: random.Random) -> Sent:
    parameters = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]}
    tool = {"type": "function", "function": {"name": "weather", "parameters": parameters}}
    choice = rng.choice(["auto", "required", "none"])
    body = _chat(_words(rng, 4), tools=[tool], tool_choice=choice, max_tokens=40, parallel_tool_calls=False)
    return _post(body | {"stream": rng.random() < 0.5})


def tools_answered(rng: random.Random) -> Sent:
    """Several tools, one of them called before, with its result; which one comes next may be named."""
    names = ("weather", "time", "distance")
    place = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]}
    tools = [{"type": "function", "function": {"name": name, "parameters": place}} for name in names]
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    body = _chat(_words(rng, 4), tools=tools, max_tokens=40, parallel_tool_calls=rng.random() < 0.5)
    body["messages"] += [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": _words(rng, 3)},
    ]
    named = {"type": "function", "function": {"name": rng.choice(names)}}
    return _post(body | {"tool_choice": rng.choice(["auto", "required", named]), "stream": rng.random() < 0.5})


def costly_schema(rng: random.Random) -> Sent:
    """It takes longer to compile than it may; others' structured output must not wait for it."""
    schema = contradicting_patterns(rng.randrange(30, 60))
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
    body = _chat(_words(rng, 4), response_format=wanted, max_tokens=4)
    return _post(body, allowed=frozenset({200, 400, 429, 503}))


def contradicting_patterns(begin: int) -> dict[str, Any]:
    """A small schema that takes seconds to compile, and hundreds of MB. `begin` makes it another one."""
    return {"allOf": [{"type": "string", "pattern": f".*a.{{{begin + index}}}b.*"} for index in range(13)]}


def response(rng: random.Random) -> Sent:
    body = {"model": "auto", "input": _words(rng, 6), "max_output_tokens": rng.randint(1, 8), "temperature": 0}
    return _post(body | {"stream": rng.random() < 0.5}, RESPONSES)


def response_call(rng: random.Random) -> Sent:
    """Items of an earlier call and its result, and a tool that this server does not have."""
    place = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]}
    call = {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": '{"city": "Oslo"}'}
    body = {
        "model": "auto",
        "max_output_tokens": rng.randint(1, 40),
        "input": [
            {"role": "user", "content": _words(rng, 4)},
            {"type": "reasoning", "id": "rs_1", "summary": []},
            call,
            {"type": "function_call_output", "call_id": "call_1", "output": _words(rng, 3)},
        ],
        "tools": [{"type": "function", "name": "weather", "parameters": place}, {"type": "web_search"}],
        "tool_choice": rng.choice(["auto", "required", "none"]),
        "stream": rng.random() < 0.5,
    }
    return _post(body, RESPONSES)


def message(rng: random.Random) -> Sent:
    """A conversation with a call and its result, in Anthropic's format."""
    place = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]}
    call = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Oslo"}}
    result = {
        "type": "tool_result",
        "tool_use_id": "toolu_1",
        "content": _words(rng, 3),
        "is_error": rng.random() < 0.3,
    }
    body = {
        "model": "claude-next",
        "max_tokens": rng.randint(1, 40),
        "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": _words(rng, 4)},
            {"role": "assistant", "content": [call]},
            {"role": "user", "content": [result]},
        ],
        "tools": [{"name": "weather", "input_schema": place}],
        "tool_choice": {"type": rng.choice(["auto", "any", "none"])},
        "stream": rng.random() < 0.5,
    }
    return _post(body, MESSAGES)


def message_text(rng: random.Random) -> Sent:
    body = {"model": "auto", "max_tokens": rng.randint(0, 8), "messages": [{"role": "user", "content": _words(rng, 6)}]}
    return _post(body | {"temperature": 0, "stream": rng.random() < 0.5}, MESSAGES)


def counted(rng: random.Random) -> Sent:
    return _post({"model": "auto", "messages": [{"role": "user", "content": _words(rng, 6)}]}, COUNT)


def scored(rng: random.Random) -> Sent:
    body = {"model": "auto", "prompt": _words(rng, 20), "echo": True, "logprobs": 2, "max_tokens": rng.randint(0, 2)}
    return _post(body, COMPLETIONS)


def strange_key(rng: random.Random) -> Sent:
    return _post(_chat("hello"), key=rng.choice(["", "nobody", ADMIN_KEY]), allowed=frozenset({401, 403}))


def flushed(rng: random.Random) -> Sent:
    return Sent(path="/admin/cache", body=b"", method="DELETE", key=ADMIN_KEY, allowed=ANSWERED)


def inspected(rng: random.Random) -> Sent:
    return Sent(path=DEBUG, body=b"", method="GET", key=ADMIN_KEY, allowed=ANSWERED)


_BAD_BODIES: tuple[bytes, ...] = (
    b"",
    b"{",
    b"[]",
    b"null",
    b'"text"',
    b"\xff\xfe\x00",
    b'{"model": "auto"}',
    b'{"model": "auto", "messages": []}',
    b'{"model": "auto", "messages": "hello"}',
    b'{"model": "auto", "messages": [{"role": "nobody", "content": "x"}]}',
    b'{"model": "auto", "messages": [{"role": "user", "content": "x"}], "temperature": 9}',
    b'{"model": "auto", "messages": [{"role": "user", "content": "x"}], "n": 0}',
    b'{"model": "auto", "messages": [{"role": "user", "content": "x"}], "surprise": 1}',
    b'{"model": "auto", "messages": [{"role": "user", "content": "x"}], "stream_options": {"include_usage": true}}',
    b'{"model": "auto", "messages": ' + b"[" * 5000 + b"]" * 5000 + b"}",
)


def bad_body(rng: random.Random) -> Sent:
    return Sent(path=CHAT, body=rng.choice(_BAD_BODIES), allowed=frozenset({400}))


def broken_json(rng: random.Random) -> Sent:
    """A good body with one byte changed. It may still be good; it must never be a server error."""
    body = bytearray(json.dumps(_chat(_words(rng, 3), max_tokens=1)).encode())
    body[rng.randrange(len(body))] = rng.randrange(256)
    return Sent(path=CHAT, body=bytes(body), allowed=frozenset({200, 400, 404, 429}))


def oversize(rng: random.Random) -> Sent:
    body = json.dumps(_chat("x" * rng.randint(2_200_000, 2_600_000))).encode()
    return Sent(path=CHAT, body=body, allowed=frozenset({413}))


def too_long(rng: random.Random) -> Sent:
    return _post(_chat("word " * 20_000), allowed=frozenset({400}))


def nobody_there(rng: random.Random) -> Sent:
    if rng.random() < 0.5:
        return _post(_chat("hello") | {"model": "no-such-model"}, allowed=frozenset({404}))
    return Sent(path="/v1/nothing", body=b"{}", allowed=frozenset({404}))


def looked_at(rng: random.Random) -> Sent:
    path = rng.choice(["/metrics", "/readyz", "/health", "/v1/models"])
    return Sent(path=path, body=b"", method="GET")


MIX: dict[str, tuple[Callable[[random.Random], Drawn], float]] = {
    "fresh": (fresh, 22),
    "repeated": (repeated, 24),
    "at_once": (at_once, 3),
    "sampled_stream": (sampled_stream, 10),
    "two_choices": (two_choices, 3),
    "long_prompt": (long_prompt, 1),
    "dropped_stream": (dropped_stream, 7),
    "dropped_at_once": (dropped_at_once, 1),
    "dropped_before": (dropped_before, 4),
    "late": (late, 4),
    "structured": (structured, 2),
    "called": (called, 2),
    "tools_answered": (tools_answered, 2),
    "costly_schema": (costly_schema, 0.1),
    "many_trailers": (soak_faults.many_trailers, 0.5),
    "key_as_trailer": (soak_faults.key_as_trailer, 0.5),
    "upgrade": (soak_faults.upgrade, 1),
    "half_closed": (soak_faults.half_closed, 1),
    "pipelined": (soak_faults.pipelined, 0.5),
    "reloaded": (soak_faults.reloaded, 0.5),
    "damaged_student": (soak_faults.damaged_student, 0.05),
    "response": (response, 3),
    "response_call": (response_call, 2),
    "message": (message, 2),
    "message_text": (message_text, 2),
    "counted": (counted, 1),
    "scored": (scored, 1),
    "strange_key": (strange_key, 2),
    "flushed": (flushed, 0.2),
    "inspected": (inspected, 0.5),
    "bad_body": (bad_body, 8),
    "broken_json": (broken_json, 4),
    "oversize": (oversize, 0.5),
    "too_long": (too_long, 0.5),
    "nobody_there": (nobody_there, 3),
    "looked_at": (looked_at, 3),
}
"""Every kind and how often it comes, relative to the others."""


def draw(rng: random.Random) -> tuple[str, Drawn]:
    kind = rng.choices(list(MIX), [weight for _, weight in MIX.values()])[0]
    drawn = MIX[kind][0](rng)
    if isinstance(drawn, Sent) and drawn.key is None:
        drawn = replace(drawn, key=rng.choice(TENANT_KEYS))
    return kind, drawn
