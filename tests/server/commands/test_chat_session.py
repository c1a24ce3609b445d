"""Commands of `fenhe chat`, what it shows at a terminal, and what it keeps."""

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.scripted import Line
from models.errors import BadRequest, Unavailable
from server.commands.chat import converse
from server.commands.chat_input import BLOCK, Prompt, history_file
from server.commands.chat_session import ChatSession, where_they_part
from server.commands.chat_stream import ChatOptions, Reply
from server.commands.path_picture import LEVELS, UNLIT, Paint, PathShape, draw, paint_for
from tests.server.conftest import Served, Start


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def session(served: Served, out: io.StringIO | None = None) -> tuple[ChatSession, io.StringIO]:
    out = out or io.StringIO()
    return ChatSession(ChatOptions(url=served.url), out, {"NO_COLOR": "1"}), out


def said(served: Served) -> str:
    return served.student.tokenizer.decode(served.engine.submitted[-1].prompt_token_ids)


def test_terminal_shows_task_path_modules_and_speed(served: Served) -> None:
    chat, out = session(served, Terminal())
    chat.say("hello")
    last = out.getvalue().splitlines()[-1]
    assert "→ full" in last
    assert LEVELS[-1] * 6 in last
    assert "of the compute" in last
    assert "4 tokens, first after" in last


def test_paths_are_listed_with_their_modules_and_cost(served: Served) -> None:
    chat, out = session(served)
    chat.take("/paths")
    lines = out.getvalue().splitlines()
    assert len(lines) >= 2
    assert any(UNLIT in line for line in lines)
    assert all("% of the compute" in line for line in lines)


def test_compare_asks_both_paths_and_keeps_nothing(served: Served) -> None:
    chat, out = session(served)
    paths = [shape.path for shape in chat._known()]
    chat.say("hello")
    before = list(chat.messages)
    chat.take(f"/compare {paths[0]} {paths[1]}")
    assert chat.messages == before
    assert [request.path for request in served.engine.submitted[-2:]] == paths[:2]
    assert out.getvalue().splitlines()[-1] == "both say the same"
    chat.take(f"/compare {paths[0]} {paths[1]} something else")
    assert "something else" in said(served)
    assert "Hello, world!" in said(served)


def test_compare_without_a_question_or_paths_says_what_is_missing(served: Served) -> None:
    chat, _ = session(served)
    with pytest.raises(BadRequest, match="nothing was asked yet"):
        chat.take("/compare full full")
    with pytest.raises(BadRequest, match="name two paths"):
        chat.take("/compare full")


def test_route_shows_the_decision(served: Served) -> None:
    chat, out = session(served)
    num_submitted = len(served.engine.submitted)
    chat.take("/route Is it legal to record a call?")
    assert "prompt tokens, decided in" in out.getvalue()
    assert len(served.engine.submitted) == num_submitted
    with pytest.raises(BadRequest, match="give a question"):
        chat.take("/route")


def test_conversation_is_begun_again_repeated_and_saved(served: Served, tmp_path: Path) -> None:
    chat, _ = session(served)
    chat.take("/system be kind")
    chat.say("hello")
    chat.take("/retry")
    assert said(served) == "system\nbe kind\nuser\nhello\nassistant\n"
    chat.take(f"/save {tmp_path}/talk.json")
    saved = json.loads((tmp_path / "talk.json").read_text())
    assert [one["role"] for one in saved["messages"]] == ["system", "user", "assistant"]
    with pytest.raises(BadRequest, match="File exists"):
        chat.take(f"/save {tmp_path}/talk.json")
    chat.take("/new")
    chat.say("again")
    assert said(served) == "system\nbe kind\nuser\nagain\nassistant\n"


def test_model_is_changed_by_the_name_of_a_path(served: Served) -> None:
    chat, out = session(served)
    shape = chat._known()[0]
    chat.take(f"/model {shape.path}")
    assert out.getvalue() == f"model {shape.model}\n"
    chat.say("hello")
    assert served.engine.submitted[-1].path == shape.path


def test_unknown_command_names_the_likely_one_and_two_slashes_are_a_question(served: Served) -> None:
    chat, _ = session(served)
    with pytest.raises(BadRequest, match="/compare"):
        chat.take("/compar a b")
    assert chat.take("//etc/hosts is what?")
    assert "/etc/hosts is what?" in said(served)
    assert not chat.take("/quit")


def test_refused_question_is_not_kept(start: Start) -> None:
    served = start({"broken": Line(pieces=(), refusal=Unavailable("no", retry_after_s=1.0))})
    chat, _ = session(served)
    with pytest.raises((BadRequest, Unavailable)):
        chat.say("broken")
    assert chat.messages == []


def test_retry_that_is_refused_loses_nothing(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    chat, _ = session(served)
    chat.say("hello")
    before = list(chat.messages)

    def refuse(*arguments: object) -> Reply:
        raise Unavailable("no")

    monkeypatch.setattr("server.commands.chat_session.ask", refuse)
    with pytest.raises(Unavailable):
        chat.take("/retry")
    assert chat.messages == before


def test_error_ends_the_answer_but_not_a_conversation_at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    typed = iter(["hello", "/nothing"])

    def type_next(prompt: str) -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", type_next)
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/nowhere")
    out = io.StringIO()
    assert converse(ChatOptions(url="http://127.0.0.1:1"), None, Terminal(), out) == 0
    assert "no server answers at" in out.getvalue()
    assert "there is no /nothing" in out.getvalue()


def test_lines_are_joined_by_backslashes_and_blocks() -> None:
    typed = f"one\\\ntwo\n\n{BLOCK}\na\n\nb\n{BLOCK}\nlast\\\n"
    assert list(Prompt(io.StringIO(typed), io.StringIO(), is_terminal=False)) == ["one\ntwo", "a\n\nb", "last"]


def test_history_lies_where_state_belongs() -> None:
    assert history_file({"XDG_STATE_HOME": "/state"}) == Path("/state/fenhe/chat_history")
    assert history_file({}) == Path.home() / ".local/state/fenhe/chat_history"


def test_narrow_path_is_drawn_lower_and_missing_modules_unlit() -> None:
    full = PathShape(student="s", path="full", modules=("a", "b"), is_narrow=False, compute=0.84, model="s:full")
    narrow = PathShape(student="s", path="narrow", modules=("a", "b"), is_narrow=True, compute=0.5, model="s:narrow")
    short = PathShape(student="s", path="short", modules=("a",), is_narrow=False, compute=0.4, model="s:short")
    every, plain = [full, narrow, short], Paint(is_on=False)
    assert draw(full, every, plain) == "a ██████ b ██████"
    assert draw(narrow, every, plain) == "a ▄▄▄▄▄▄ b ▄▄▄▄▄▄"
    assert draw(short, every, plain) == "a ██████ b ······"


def test_colours_are_for_terminals_that_want_them() -> None:
    assert paint_for(Terminal(), {}).is_on
    assert not paint_for(Terminal(), {"NO_COLOR": "1"}).is_on
    assert not paint_for(io.StringIO(), {}).is_on


def test_answers_are_compared_word_by_word() -> None:
    assert where_they_part("a b c d", "a b x") == "the same for 2 words, up to “a b”"
    assert where_they_part("a", "b") == "they differ from the first word"


@pytest.fixture
def _heeds_ctrl_c() -> Iterator[None]:
    """Where tests run in the background, what they start ignores Ctrl-C, unless there is a handler here."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_heeds_ctrl_c")
def test_ctrl_c_stops_the_answer_and_not_the_program(start: Start, tmp_path: Path) -> None:
    served = start({"slow": Line(pieces=tuple(f"w{number} " for number in range(200)), delay_s=0.05)})
    master, slave = pty.openpty()
    environ = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "server.commands.cli", "chat", "--url", served.url]
    chat = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environ, start_new_session=True)
    os.close(slave)
    try:
        read_until(master, "> ")
        os.write(master, b"slow\n")
        read_until(master, "w3 ")
        os.killpg(chat.pid, signal.SIGINT)
        assert "stopped" in read_until(master, "stopped")
        os.write(master, b"/new\nhello\n")
        assert "Hello, world!" in read_until(master, "first after")
        os.write(master, b"/quit\n")
        assert chat.wait(timeout=60) == 0
    finally:
        chat.kill()
        chat.wait()
        os.close(master)
    wait_for_abort(served)
    assert (tmp_path / "fenhe" / "chat_history").read_text().split("\n")[-5:-1] == ["slow", "/new", "hello", "/quit"]


def wait_for_abort(served: Served, limit_s: float = 60.0) -> None:
    """The server sees that its client has gone a moment later."""
    end_s = time.monotonic() + limit_s
    while not served.engine.aborted:
        assert time.monotonic() < end_s
        time.sleep(0.01)


def read_until(terminal: int, wanted: str, limit_s: float = 60.0) -> str:
    shown, end_s = "", time.monotonic() + limit_s
    while wanted not in shown:
        readable, _, _ = select.select([terminal], [], [], max(end_s - time.monotonic(), 0.0))
        assert readable, f"{wanted!r} did not come within {limit_s:g} s: {shown!r}"
        shown += os.read(terminal, 4096).decode(errors="replace")
    return shown
