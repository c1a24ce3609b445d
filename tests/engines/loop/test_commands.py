"""Commands come in order; a question is answered once, or abandoned by the thread that asked it."""

import threading
from typing import NoReturn

import pytest

from engines.loop.commands import Abort, Audit, Commands, ListSequences, Wake
from models.errors import EngineUnhealthy


def test_commands_are_taken_in_order_with_those_that_come_meanwhile() -> None:
    commands = Commands(lambda: True)
    commands.put(Abort(sequence_id="a"))
    taken = []
    for command in commands.take():
        taken.append(command)
        if len(taken) == 1:
            commands.put(Wake())
    assert taken == [Abort(sequence_id="a"), Wake()]
    assert list(commands.take(wait_s=0.001)) == []


def test_question_is_answered_on_the_thread_that_takes_it() -> None:
    commands = Commands(lambda: True)

    def serve() -> None:
        for command in commands.take(wait_s=20):
            assert isinstance(command, Audit)
            command.answer(lambda: ["all is well"])

    thread = threading.Thread(target=serve)
    thread.start()
    assert commands.ask(Audit(), 20) == ["all is well"]
    thread.join(20)


def test_question_whose_answer_cannot_be_found_is_told_so(caplog: pytest.LogCaptureFixture) -> None:
    question = ListSequences()

    def fail() -> NoReturn:
        raise IndexError("slot 99")

    question.answer(fail)
    with pytest.raises(EngineUnhealthy, match=r"the list of sequences failed: IndexError\('slot 99'\)"):
        question.reply.result()
    assert "list of sequences failed" in caplog.text


def test_question_nobody_waits_for_is_not_answered() -> None:
    commands = Commands(lambda: True)
    with pytest.raises(EngineUnhealthy, match=r"did not answer within 0\.01 s"):
        commands.ask(Audit(), 0.01)
    (question,) = commands.take()
    assert isinstance(question, Audit)
    question.answer(lambda: pytest.fail("answered"))


def test_question_without_a_thread_is_refused_and_not_queued() -> None:
    commands = Commands(lambda: False)
    with pytest.raises(EngineUnhealthy, match="is not running"):
        commands.ask(Audit(), 20)
    assert len(commands) == 0
