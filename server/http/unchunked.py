"""Answers to clients of HTTP/1.0, which know no chunked coding: one without a length ends with its connection."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


def without_chunks(app: ASGIApp, cycle: RequestResponseCycle) -> ASGIApp:
    """The same application for one request of HTTP/1.0. Such connections are closed after each answer.

    Source: RFC 9112, sections 6.1 and 6.3.
    """

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        is_endless = False

        async def send_unchunked(message: Message) -> None:
            nonlocal is_endless
            if message["type"] == "http.response.start":
                is_endless = all(name != b"content-length" for name, _ in message.get("headers", ()))
                cycle.chunked_encoding = False if is_endless else None  # false: no header, and bodies as they are
            elif is_endless:
                cycle.expected_content_length = len(message.get("body", b""))  # uvicorn counts down to 0
            await send(message)

        cycle.waiting_for_100_continue = False  # RFC 9110 10.1.1
        await app(scope, receive, send_unchunked)

    return answer
