"""The pool: who is in it, in which state, and how they come and go."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engines.scripted import Line, ScriptedEngine
from engines.sequence import GenerationRequest, SamplingParams, SequenceEvent
from models.errors import BadRequest, ConfigError, NotFound
from router.decision import Health
from router.pool import Member, Pool
from tests.server.conftest import make_engine, make_student, until

REQUEST = GenerationRequest(id="one", prompt_token_ids=(1,), path="full", sampling=SamplingParams(max_tokens=400))


def make_member(name: str, **options: bool) -> Member:
    slow = Line(pieces=("x",) * 400, delay_s=0.02)
    engine = make_engine({"": slow}, student=name, **options)
    return Member(name=name, student=make_student(Path("/nowhere"), name), engine=engine, max_running=4)


def engine_of(member: Member) -> ScriptedEngine:
    assert isinstance(member.engine, ScriptedEngine)
    return member.engine


def make_pool(*members: Member) -> Pool[Member]:
    pool: Pool[Member] = Pool()
    for member in members:
        pool.add(member)
    return pool


@pytest.mark.parametrize(
    ("change", "health"),
    [
        (lambda pool, engine: None, Health.READY),
        (lambda pool, engine: engine.load(3), Health.LOADING),
        (lambda pool, engine: pool.drain("a"), Health.DRAINING),
        (lambda pool, engine: engine.sicken("it broke"), Health.UNHEALTHY),
        (lambda pool, engine: (pool.drain("a"), engine.sicken("it broke")), Health.UNHEALTHY),
    ],
)
def test_pool_states_tell_health(change: Callable[[Pool[Member], ScriptedEngine], object], health: Health) -> None:
    member = make_member("a")
    pool = make_pool(member)
    change(pool, engine_of(member))
    (state,) = pool.states()
    assert state.health is health
    assert (state.error is not None) == (health is Health.UNHEALTHY)


def test_pool_states_tell_load_in_order() -> None:
    members = [make_member("a", is_loaded=False), make_member("b")]
    pool = make_pool(*members)
    engine_of(members[0]).submit(REQUEST)
    states = pool.states()
    assert [(state.name, state.num_running, state.num_waiting, state.max_running) for state in states] == [
        ("a", 0, 1, 4),
        ("b", 0, 0, 4),
    ]
    assert states[0].variant == "scripted"
    assert states[0].manifest.name == "a"


@pytest.mark.parametrize(
    "name", ["a", "auto", "b:c", "b/c", "", " ", " b", "b ", "b\n", "b\r\nx: y", "b\x7f", "é", "..", "-b"]
)
def test_pool_refuses_names_that_collide(name: str) -> None:
    pool = make_pool(make_member("a"))
    with pytest.raises(ConfigError, match="name"):
        pool.add(make_member(name))
    assert len(pool.members) == 1


@pytest.mark.parametrize("name", ["b", "SmolLM2-135M_v1.5", "two words", "a+b", "7"])
def test_pool_takes_plain_names(name: str) -> None:
    assert make_pool(make_member(name)).find(name).name == name


def test_pool_resumes_what_was_drained() -> None:
    pool = make_pool(make_member("a"))
    pool.drain("a")
    assert pool.resume("a").state().health is Health.READY
    with pytest.raises(NotFound):
        pool.resume("b")


def test_pool_find_lists_the_known() -> None:
    with pytest.raises(NotFound, match=r"`x`.*`a`"):
        make_pool(make_member("a")).find("x")
    with pytest.raises(NotFound, match="none"):
        make_pool().find("x")


def test_pool_removes_the_busy_only_after_draining() -> None:
    member = make_member("a")
    pool = make_pool(member)
    events: list[SequenceEvent] = []
    member.engine.start(events.extend)
    try:
        member.engine.submit(REQUEST)
        assert until(lambda: member.engine.status().num_running == 1)
        with pytest.raises(BadRequest, match="drain"):
            pool.take_out("a")
        assert pool.members == (member,)
        pool.drain("a")
        assert pool.take_out("a") is member
        assert not pool.members
    finally:
        member.engine.stop(0.0)
    assert events[-1].finish is not None


def test_pool_removes_the_idle_at_once() -> None:
    pool = make_pool(make_member("a"), make_member("b"))
    pool.take_out("a")
    assert [state.name for state in pool.states()] == ["b"]
    with pytest.raises(NotFound):
        pool.take_out("a")


def test_pool_keeps_every_member_when_many_threads_add() -> None:
    pool = make_pool()
    members = [make_member(f"student-{index}") for index in range(40)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(pool.add, members))
    assert {member.name for member in pool.members} == {member.name for member in members}
