"""Bounds of a request: the size, kind and time of its body, its choices and its tokens."""

import asyncio
from collections.abc import Iterable

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message

from engines.config import EngineConfig
from models.errors import BadRequest, ContextTooLong, InvalidParameter
from server.context import Context, make_context
from server.generation.limits import answer_tokens, check_choices, read_json_body
from server.settings.config import Limits, ServerConfig
from server.students.event_bridge import ClientGone
from server.students.student import ServedStudent
from tests.server.conftest import CONTEXT_TOKENS, TinyStudent, make_engine, open_scripted

JSON = [(b"content-type", b"application/json; charset=utf-8")]


def make(limits: Limits) -> Context:
    return make_context(ServerConfig(limits=limits, engine=EngineConfig(max_running=4)), [])


def part(body: bytes, *, more: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


def request(messages: Iterable[Message], headers: list[tuple[bytes, bytes]] | None = None) -> Request:
    """A request whose messages come one by one, and then none any more."""
    waiting = list(messages)

    async def receive() -> Message:
        if not waiting:
            await asyncio.Event().wait()
        return waiting.pop(0)

    return Request({"type": "http", "method": "POST", "headers": JSON if headers is None else headers}, receive)


async def test_body_is_read_to_its_end() -> None:
    asked = request([part(b'{"a"', more=True), part(b"", more=True), part(b": 1}")])
    assert await read_json_body(asked, make(Limits())) == b'{"a": 1}'


@pytest.mark.parametrize("parts", [[b"x" * 11], [b"x" * 6, b"x" * 5]])
async def test_body_that_grows_too_large_is_not_read_on(parts: list[bytes]) -> None:
    asked = request([part(body, more=True) for body in parts])
    with pytest.raises(HTTPException, match=r"larger than 10 bytes \(limits\.max_body_bytes\)") as caught:
        await read_json_body(asked, make(Limits(max_body_bytes=10)))
    assert caught.value.status_code == 413


@pytest.mark.parametrize("length", [b"11", b"0011", b"9" * 5000])
async def test_body_that_is_announced_too_large_is_not_read(length: bytes) -> None:
    asked = request([], [*JSON, (b"content-length", length)])
    with pytest.raises(HTTPException, match="larger than 10 bytes") as caught:
        await read_json_body(asked, make(Limits(max_body_bytes=10)))
    assert caught.value.status_code == 413


@pytest.mark.parametrize("length", [b"-1", b"ten", "²".encode(), b""])
async def test_length_that_is_no_number_is_refused(length: bytes) -> None:
    with pytest.raises(BadRequest, match="content-length"):
        await read_json_body(request([], [*JSON, (b"content-length", length)]), make(Limits()))


@pytest.mark.parametrize("kind", [[], [(b"content-type", b"text/plain")], [(b"content-type", b"application/jsonx")]])
async def test_body_that_is_no_json_is_refused_by_its_kind(kind: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(HTTPException, match="application/json") as caught:
        await read_json_body(request([part(b"{}")], kind), make(Limits()))
    assert caught.value.status_code == 415


async def test_body_that_comes_too_slowly_is_given_up() -> None:
    asked = request([part(b"{", more=True)])
    with pytest.raises(HTTPException, match=r"within 0\.01 s") as caught:
        await read_json_body(asked, make(Limits(body_timeout_s=0.01)))
    assert caught.value.status_code == 408


async def test_client_that_leaves_while_it_sends_is_noticed() -> None:
    with pytest.raises(ClientGone):
        await read_json_body(request([part(b"{", more=True), {"type": "http.disconnect"}]), make(Limits()))


@pytest.mark.parametrize(("num_prompts", "n", "param"), [(3, 1, "prompt"), (2, 3, "n"), (1, 5, "n")])
def test_more_choices_than_may_run_are_refused(num_prompts: int, n: int, param: str) -> None:
    context = make(Limits(max_prompts=2))
    with pytest.raises(InvalidParameter) as caught:
        check_choices(context, num_prompts, n)
    assert caught.value.param == param


def test_choices_up_to_the_bound_are_let_through() -> None:
    context = make(Limits(max_prompts=2))
    check_choices(context, 2, 2)
    check_choices(context, 1, 4)


@pytest.fixture
def served_student(student: TinyStudent) -> ServedStudent:
    return make_context(ServerConfig(), [open_scripted(student, make_engine({}))]).students[0]


@pytest.mark.parametrize(
    ("limits", "num_prompt_tokens", "wanted", "expected"),
    [
        (Limits(), 500, None, CONTEXT_TOKENS - 500),
        (Limits(), CONTEXT_TOKENS - 1, None, 1),
        (Limits(), 500, 12, 12),
        (Limits(), 500, 0, 0),
        (Limits(max_completion_tokens=5), 500, None, 5),
        (Limits(max_completion_tokens=50), 500, None, 12),
        (Limits(), 500, 13, 12),
        (Limits(), CONTEXT_TOKENS - 1, 10**9, 1),
        (Limits(max_completion_tokens=5), 10, 6, 5),
        (Limits(max_completion_tokens=50), 500, 20, 12),
    ],
)
def test_answer_may_have_what_was_asked_for_or_the_rest(
    served_student: ServedStudent, limits: Limits, num_prompt_tokens: int, wanted: int | None, expected: int
) -> None:
    assert answer_tokens(limits, served_student, num_prompt_tokens, wanted, "prompt") == expected


@pytest.mark.parametrize(
    ("limits", "num_prompt_tokens", "maximum"),
    [
        (Limits(), CONTEXT_TOKENS, f"{CONTEXT_TOKENS - 1} maximum."),
        (Limits(max_prompt_tokens=10), 11, "10 maximum (limits.max_prompt_tokens)."),
    ],
)
def test_prompt_that_does_not_fit_is_refused_in_words_that_clients_know(
    served_student: ServedStudent, limits: Limits, num_prompt_tokens: int, maximum: str
) -> None:
    with pytest.raises(ContextTooLong) as caught:
        answer_tokens(limits, served_student, num_prompt_tokens, None, "prompt")
    assert caught.value.message.startswith(f"prompt is too long: {num_prompt_tokens} tokens > {maximum}")
    assert f"maximum context length is {CONTEXT_TOKENS} tokens" in caught.value.message
