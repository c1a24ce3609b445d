"""Clients of HTTP/1.0: no chunked coding, no interim responses, and the end of the connection ends the answer."""

import json

import pytest

from tests.server.conftest import Served, events_of
from tests.server.http.test_connection_limits import connect, read_all


def ask(served: Served, path: str, body: dict[str, object] | None = None, extra: str = "") -> tuple[list[str], bytes]:
    """Head lines and body of an answer to a client of HTTP/1.0."""
    content = b"" if body is None else json.dumps(body).encode()
    head = f"{'GET' if body is None else 'POST'} {path} HTTP/1.0\r\n{extra}"
    head += f"content-type: application/json\r\ncontent-length: {len(content)}\r\n" if content else ""
    with connect(served) as connection:
        connection.sendall(head.encode() + b"\r\n" + content)
        lines, _, rest = read_all(connection).partition(b"\r\n\r\n")
        return lines.decode().lower().split("\r\n"), rest


def chat(*, is_stream: bool, prompt: str = "long") -> dict[str, object]:
    return {"model": "auto", "messages": [{"role": "user", "content": prompt}], "stream": is_stream}


@pytest.mark.parametrize("extra", ["", "connection: keep-alive\r\n", "te: chunked\r\n", "expect: 100-continue\r\n"])
def test_stream_comes_without_chunks(served: Served, extra: str) -> None:
    head, body = ask(served, "/v1/chat/completions", chat(is_stream=True), extra)
    assert head[0].endswith(" 200 ok")
    assert "connection: close" in head
    assert not [line for line in head if line.startswith(("transfer-encoding", "content-length"))]
    events = events_of(body)
    assert events[-1] == "[DONE]"
    text = "".join(event["choices"][0]["delta"].get("content") or "" for event in events[:-1])
    assert text == "".join(f"w{index} " for index in range(50))


def test_whole_answer_has_its_length(served: Served) -> None:
    head, body = ask(served, "/v1/chat/completions", chat(is_stream=False))
    assert f"content-length: {len(body)}" in head
    assert "connection: close" in head
    assert json.loads(body)["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("path", ["/health", "/metrics", "/v2/nothing"])
def test_get_has_its_length(served: Served, path: str) -> None:
    head, body = ask(served, path)
    assert f"content-length: {len(body)}" in head


def test_stream_of_http_1_1_stays_chunked(served: Served) -> None:
    response = served.chat("long", stream=True)
    assert response.headers["transfer-encoding"] == "chunked"
    assert events_of(response.content)[-1] == "[DONE]"
