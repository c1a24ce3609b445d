"""What an engine accepts from any thread, what it refuses, and when it may stop."""

import threading

import pytest

from engines.loop.commands import Abort, Accept, Commands, Wake
from engines.loop.living import LivingSequences
from engines.sequence import GenerationRequest, SamplingParams, Sequence, new_sequence
from models.errors import EngineUnhealthy, InvalidParameter, QueueFull


def sequence(id: str) -> Sequence:
    request = GenerationRequest(id=id, prompt_token_ids=(5,), path="full", sampling=SamplingParams(max_tokens=1))
    return new_sequence(request, lambda _: b"")


@pytest.fixture
def commands() -> Commands:
    return Commands(lambda: True)


@pytest.fixture
def living(commands: Commands) -> LivingSequences:
    return LivingSequences(2, commands)


def test_living_accepts_by_command_in_order(living: LivingSequences, commands: Commands) -> None:
    first, second = sequence("a"), sequence("b")
    living.accept(first)
    living.abort("a")
    living.accept(second)
    assert list(commands.take()) == [Accept(sequence=first), Abort(sequence_id="a"), Accept(sequence=second)]
    assert (living.ids(), len(living), living.num_accepted) == ({"a", "b"}, 2, 2)


def test_living_refuses_beyond_its_capacity_until_one_ends(living: LivingSequences, commands: Commands) -> None:
    living.accept(sequence("a"))
    living.accept(sequence("b"))
    with pytest.raises(QueueFull, match="2 requests") as caught:
        living.accept(sequence("c"))
    assert caught.value.retry_after_s
    living.end("a")
    living.accept(sequence("c"))
    assert (living.num_accepted, len(commands)) == (3, 3)


def test_living_refuses_an_id_that_lives(living: LivingSequences, commands: Commands) -> None:
    living.accept(sequence("a"))
    with pytest.raises(InvalidParameter, match="'a' is running already"):
        living.accept(sequence("a"))
    assert len(commands) == 1


def test_living_fail_names_who_lives_and_refuses_with_the_error(living: LivingSequences) -> None:
    living.accept(sequence("a"))
    assert living.fail(EngineUnhealthy("it broke"), "it broke: here") == {"a"}
    with pytest.raises(EngineUnhealthy, match=r"^it broke$"):
        living.accept(sequence("b"))
    assert living.error_detail == "it broke: here"


def test_living_stop_refuses_wakes_the_engine_and_is_over_when_the_last_ended(
    living: LivingSequences, commands: Commands
) -> None:
    living.accept(sequence("a"))
    assert not living.is_over()
    living.stop(60.0)
    assert list(commands.take())[-1] == Wake()
    with pytest.raises(EngineUnhealthy, match="shutting down"):
        living.accept(sequence("b"))
    assert not living.is_over()
    living.end("a")
    assert living.is_over()


def test_living_stop_without_grace_is_over_at_once(living: LivingSequences) -> None:
    living.accept(sequence("a"))
    living.stop(0.0)
    assert living.is_over()


def test_living_failure_leaves_no_command_behind_it(commands: Commands) -> None:
    """After `fail` the queue has every accepted sequence: none can be added later."""
    living = LivingSequences(100_000, commands)
    started = threading.Event()

    def accept() -> None:
        for number in range(100_000):
            try:
                living.accept(sequence(f"s{number}"))
            except EngineUnhealthy:
                return
            started.set()

    thread = threading.Thread(target=accept)
    thread.start()
    assert started.wait(20)
    owed = living.fail(EngineUnhealthy("it broke"), "")
    taken = {command.sequence.id for command in commands.take() if isinstance(command, Accept)}
    thread.join(20)
    assert taken == owed
    assert len(commands) == 0
