"""Around every request, with a small application inside: ids, errors as bodies, and what is counted."""

import asyncio
import json
from collections import Counter
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from models.errors import QueueFull, StepFailed
from server.context import Context, make_context
from server.http.middleware import CLIENT_GONE, RequestMiddleware
from server.settings.config import ServerConfig
from server.students.event_bridge import ClientGone
from server.telemetry.request_record import KEY, Record


class Inner:
    """The application inside: answers 200, and then fails if it has an error to raise."""

    def __init__(self, failure: BaseException | None = None, *, starts: bool = True, is_stream: bool = False) -> None:
        self.failure, self.starts, self.is_stream = failure, starts, is_stream
        self.headers: list[tuple[bytes, bytes]] = []
        self.record: Record | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.record = scope[KEY]
        if self.starts:
            await send({"type": "http.response.start", "status": 200, "headers": self.headers})
            self.record.is_event_stream = self.is_stream
        if self.failure is not None:
            raise self.failure
        await send({"type": "http.response.body", "body": b"fine"})

    @property
    def routes(self) -> list[Any]:
        return []


class Sent(list[Message]):
    @property
    def status(self) -> int:
        return int(self[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self[0]["headers"]}

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self[1]["body"])["error"]
        return found


@pytest.fixture
def context() -> Context:
    return make_context(ServerConfig(), [])


async def call(context: Context, inner: Inner, path: str = "/v1/models", method: str = "GET", **headers: str) -> Sent:
    sent = Sent()

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    given = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": given, "app": inner}
    await RequestMiddleware(inner, context)(scope, receive, send)
    return sent


@pytest.mark.parametrize("given", ["abc", "a.b:c_d-1", "x" * 128])
async def test_request_keeps_its_id(context: Context, given: str) -> None:
    inner = Inner()
    sent = await call(context, inner, x_request_id=given)
    assert sent.headers["x-request-id"] == given
    assert inner.record is not None
    assert inner.record.key == given


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "ä"])
async def test_id_that_cannot_stand_in_a_log_is_replaced(context: Context, given: str) -> None:
    sent = await call(context, Inner(), x_request_id=given)
    assert sent.headers["x-request-id"] not in ("", given)
    assert len(sent.headers["x-request-id"]) == 32


async def test_key_of_an_id_in_use_gets_a_suffix(context: Context) -> None:
    context.drain.open_keys.add("abc")
    inner = Inner()
    sent = await call(context, inner, x_request_id="abc")
    assert sent.headers["x-request-id"] == "abc"
    assert inner.record is not None
    assert inner.record.key.startswith("abc.")
    assert context.drain.open_keys == {"abc"}


async def test_serving_error_becomes_its_status_and_body(context: Context) -> None:
    sent = await call(context, Inner(QueueFull("too many", retry_after_s=2.0), starts=False))
    assert (sent.status, sent.error["code"], sent.error["message"]) == (429, "queue_full", "too many")
    assert sent.headers["retry-after"] == "2"


async def test_unforeseen_error_becomes_a_500_that_tells_nothing(
    context: Context, caplog: pytest.LogCaptureFixture
) -> None:
    sent = await call(context, Inner(ZeroDivisionError("secret"), starts=False))
    assert sent.status == 500
    assert b"secret" not in sent[1]["body"]
    assert "secret" in caplog.text


async def test_panic_of_a_foreign_library_becomes_a_500(context: Context) -> None:
    class Panic(BaseException):
        pass

    assert (await call(context, Inner(Panic("rust"), starts=False))).status == 500


async def test_cancelled_request_stays_cancelled(context: Context) -> None:
    with pytest.raises(asyncio.CancelledError):
        await call(context, Inner(asyncio.CancelledError(), starts=False))
    assert context.drain.open_keys == set()


async def test_error_inside_a_stream_is_an_event_of_it(context: Context) -> None:
    sent = await call(context, Inner(StepFailed("broken"), is_stream=True))
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert sent[1]["body"].startswith(b'data: {"error":')
    assert not sent[1].get("more_body", False)


async def test_error_inside_a_plain_body_cuts_the_connection(context: Context) -> None:
    with pytest.raises(ZeroDivisionError):
        await call(context, Inner(ZeroDivisionError("half is out")))


async def test_client_that_left_is_counted_and_sent_nothing(context: Context) -> None:
    inner = Inner(ClientGone(), starts=False)
    assert await call(context, inner) == []
    assert inner.record is not None
    assert inner.record.status == CLIENT_GONE


async def test_header_with_a_control_character_is_a_500(context: Context) -> None:
    inner = Inner()
    inner.headers = [(b"x-bad", b"a\r\nb")]
    assert (await call(context, inner)).status == 500


@pytest.mark.parametrize(("path", "status"), [("/v1/models", 503), ("/tokenize", 503), ("/health", 200)])
async def test_server_that_stops_refuses_work_alone(context: Context, path: str, status: int) -> None:
    context.drain.is_draining = True
    assert (await call(context, Inner(), path)).status == status


async def test_open_work_is_known_while_it_runs(context: Context) -> None:
    seen: list[int] = []

    class Looking(Inner):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            seen.append(len(context.drain.open_keys))
            await super().__call__(scope, receive, send)

    await call(context, Looking())
    await call(context, Looking(), "/health")
    assert seen == [1, 0]
    assert context.drain.open_keys == set()


async def test_deadline_nobody_can_read_is_refused(context: Context) -> None:
    sent = await call(context, Inner(), "/v1/completions", "POST", x_fenhe_deadline_ms="soon")
    assert (sent.status, sent.error["param"]) == (400, "x-fenhe-deadline-ms")


async def test_connections_that_are_no_http_pass_through(context: Context) -> None:
    asked: Counter[str] = Counter()

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        asked[scope["type"]] += 1

    async def nothing(*_: Any) -> Any: ...

    await RequestMiddleware(inner, context)({"type": "lifespan"}, nothing, nothing)
    assert asked == {"lifespan": 1}
