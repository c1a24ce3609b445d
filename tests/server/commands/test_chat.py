"""`fenhe chat`'s conversation with a server."""

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.scripted import Line
from models.errors import BadRequest, ConfigError, StepFailed, Unavailable
from server.commands.chat import converse
from server.commands.chat_stream import ChatOptions, Reply
from server.commands.cli import main
from server.settings.config import KeysConfig, ServerConfig
from tests.server.conftest import SCRIPT, Served, Start, TinyStudent, make_engine, open_scripted, run_server

KEY = "fk-right"


@pytest.fixture
def guarded(student: TinyStudent, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A server that asks for `KEY`; no environment variable has a key."""
    for name in ("FENHE_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    config = ServerConfig(keys=KeysConfig(sha256=(hashlib.sha256(KEY.encode()).hexdigest(),)))
    with run_server([open_scripted(student, make_engine(SCRIPT))], config) as served:
        yield served


def test_conversation_carries_what_was_said(served: Served) -> None:
    out = io.StringIO()
    assert converse(ChatOptions(url=served.url, system="be kind"), None, io.StringIO("hello\n\nagain\n"), out) == 0
    prompt = served.student.tokenizer.decode(served.engine.submitted[-1].prompt_token_ids)
    assert prompt == "system\nbe kind\nuser\nhello\nassistant\nHello, world!\nuser\nagain\nassistant\n"
    assert out.getvalue().count("[path full, 4 tokens, first after ") == 2


@pytest.mark.parametrize(("given", "used"), [(None, 1.0), (0.0, 0.0), (0.4, 0.4)])
def test_conversation_leaves_the_temperature_to_the_server_unless_it_is_given(
    served: Served, given: float | None, used: float
) -> None:
    options = ChatOptions(url=served.url, temperature=given)
    converse(options, f"hello {given}", io.StringIO(), io.StringIO())
    assert served.engine.submitted[-1].sampling.temperature == used


def test_reply_speed_leaves_the_first_token_out() -> None:
    reply = Reply(path="full", num_tokens=11, started_s=1.0, first_s=1.5, last_s=3.5)
    assert reply.summary() == "path full, 11 tokens, first after 500 ms, 5.0 tokens/s"


def test_conversation_reports_an_error_inside_the_stream(start: Start) -> None:
    served = start({"broken": Line(pieces=("x", "y"), delay_s=0.05, error=StepFailed("the pass failed"))})
    with pytest.raises(Unavailable, match="the pass failed"):
        converse(ChatOptions(url=served.url), "broken", io.StringIO(), io.StringIO())


def test_conversation_with_something_else_says_so(served: Served) -> None:
    with pytest.raises(BadRequest, match="there is no POST"):
        converse(ChatOptions(url=f"{served.url}/nowhere"), "x", io.StringIO(), io.StringIO())


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://"])
def test_conversation_refuses_what_is_no_url(url: str) -> None:
    with pytest.raises(ConfigError, match="no server address"):
        converse(ChatOptions(url=url), "x", io.StringIO(), io.StringIO())


@pytest.mark.parametrize("name", ["model.gguf", "somewhere/else.gguf", "huggingface", "student"])
def test_chat_with_a_model_says_how_to_serve_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder, file in (("huggingface", "config.json"), ("student", "manifest.json")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).touch()
    assert main(["chat", name]) == 2
    assert f"`fenhe serve {name}`" in capsys.readouterr().err


def test_chat_begins_in_a_folder_with_a_model(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Many a folder has a `config.json`: that of a conversation without a first question is none of its business."""
    (tmp_path / "config.json").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    assert main(["chat", "--url", served.url]) == 0
    assert capsys.readouterr().out.strip()


def test_chat_takes_a_long_question_without_spaces(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "天空为什么是蓝色的？" * 12, "--url", served.url]) == 0
    assert "[path" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["chat", "hello"], ["route", "some math"]])
def test_commands_reach_a_server_with_keys(
    guarded: Served, command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [*command, "--url", guarded.url]
    assert main(asked) == 2
    told = capsys.readouterr().err
    assert all(way in told for way in ("--api-key", "FENHE_API_KEY", "OPENAI_API_KEY"))
    assert main([*asked, "--api-key", KEY]) == 0
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert main(asked) == 0
    monkeypatch.setenv("FENHE_API_KEY", "fk-wrong")
    assert main(asked) == 2
    assert "fk-wrong" not in capsys.readouterr().err


def test_options_never_show_the_key() -> None:
    assert KEY not in repr(ChatOptions(url="http://x", api_key=KEY))
