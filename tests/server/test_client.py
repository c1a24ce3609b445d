"""`fenhe chat`'s conversation with a server."""

import io

import pytest

from engines.scripted import Line
from models.errors import BadRequest, ConfigError, StepFailed, Unavailable
from server.client import Reply, Wish, converse, read_refusal
from tests.server.conftest import Served, Start


def test_conversation_carries_what_was_said(served: Served) -> None:
    out = io.StringIO()
    assert converse(Wish(url=served.url, system="be kind"), None, io.StringIO("hello\n\nagain\n"), out) == 0
    prompt = served.student.tokenizer.decode(served.engine.submitted[-1].prompt_token_ids)
    assert prompt == "system\nbe kind\nuser\nhello\nassistant\nHello, world!\nuser\nagain\nassistant\n"
    assert out.getvalue().count("[path full, 4 tokens, first after ") == 2


def test_reply_speed_leaves_the_first_token_out() -> None:
    reply = Reply(path="full", num_tokens=11, started_s=1.0, first_s=1.5, last_s=3.5)
    assert reply.summary() == "path full, 11 tokens, first after 500 ms, 5.0 tokens/s"


def test_conversation_reports_an_error_inside_the_stream(start: Start) -> None:
    served = start({"broken": Line(pieces=("x", "y"), delay_s=0.05, error=StepFailed("the pass failed"))})
    with pytest.raises(Unavailable, match="the pass failed"):
        converse(Wish(url=served.url), "broken", io.StringIO(), io.StringIO())


def test_conversation_with_something_else_says_so(served: Served) -> None:
    with pytest.raises(BadRequest, match="there is no POST"):
        converse(Wish(url=f"{served.url}/nowhere"), "x", io.StringIO(), io.StringIO())


@pytest.mark.parametrize("body", [b"<html>", b"{}", b'{"error": "text"}', b"[]"])
def test_refusal_in_another_shape_is_told(body: bytes) -> None:
    assert "is the URL right" in read_refusal(502, body).message


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://"])
def test_conversation_refuses_what_is_no_url(url: str) -> None:
    with pytest.raises(ConfigError, match="no server address"):
        converse(Wish(url=url), "x", io.StringIO(), io.StringIO())
