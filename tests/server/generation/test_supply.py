"""Where the events of an answer come from: the cache, a shared generation, its own, or a fallback's."""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import replace

import pytest

from engines.scripted import Line
from models.errors import EngineUnhealthy, InvalidParameter, QueueFull
from router.cache.result_cache import BYPASS, CacheUse, Outcome
from server.generation.plan import Plan
from server.generation.routing import Routed
from server.generation.supply import JoinedFailure, Supply
from server.settings.config import Limits
from server.students.event_bridge import EventStream
from tests.server.generation.conftest import Backend, Open

SICK = {"hello": Line(refusal=EngineUnhealthy("stopping"))}
PACED = {"hello": Line(pieces=("a", "b", "c"), delay_s=0.05)}


async def text_of(stream: EventStream, num_sequences: int = 1) -> str:
    """All text of a stream, to its end."""
    text, num_finished = "", 0
    while num_finished < num_sequences:
        for _, event in await stream.take():
            text += event.text
            num_finished += event.finish is not None
    return text


@pytest.fixture
def held() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


async def kept(backend: Backend) -> None:
    """Wait until what was generated is in the store."""
    while backend.context.cache._keeping:
        await asyncio.sleep(0)


async def test_supply_without_the_cache_is_a_generation_of_its_own(
    open_backend: Open, held: contextlib.ExitStack
) -> None:
    backend = open_backend()
    supplier = await backend.supplier(use=BYPASS)
    supply = await supplier.supply(held)
    assert (supply.outcome, supply.found, supply.plan) == (Outcome.BYPASS, None, supplier.plan)
    assert await text_of(supply.stream) == "Hello, world!"
    assert len(backend.context.cache.flights) == 0


async def test_supply_that_is_let_go_of_ends_its_generation(open_backend: Open) -> None:
    backend = open_backend({"tiny": {"hello": Line(pieces=("a",) * 100, delay_s=0.05)}})
    for use in (BYPASS, CacheUse(reads=True, writes=True)):
        with contextlib.ExitStack() as held:
            await (await backend.supplier(use=use)).supply(held)
            assert backend.context.num_streams == 1
        assert backend.context.num_streams == 0
    assert backend.engines["tiny"].aborted == ["r-0", "r-0"]


async def test_supply_leads_then_is_joined_then_is_kept(open_backend: Open, held: contextlib.ExitStack) -> None:
    backend = open_backend({"tiny": PACED})
    leader = await (await backend.supplier()).supply(held)
    follower = await (await backend.supplier(backend.order(key="s"))).supply(held)
    assert (leader.outcome, follower.outcome) == (Outcome.MISS, Outcome.JOIN)
    assert await text_of(leader.stream) == await text_of(follower.stream) == "abc"
    await kept(backend)
    hit = await (await backend.supplier()).supply(held)
    assert hit.outcome is Outcome.HIT
    assert hit.found is not None
    assert await text_of(hit.stream) == "abc"
    assert len(backend.engines["tiny"].submitted) == 1


async def test_supply_of_one_who_wants_a_fresh_answer_is_a_bypass_that_is_kept(
    open_backend: Open, held: contextlib.ExitStack
) -> None:
    backend = open_backend()
    fresh = await (await backend.supplier(use=CacheUse(writes=True))).supply(held)
    assert fresh.outcome is Outcome.BYPASS
    await text_of(fresh.stream)
    await kept(backend)
    assert (await (await backend.supplier()).supply(held)).outcome is Outcome.HIT


async def test_supply_falls_back_with_a_plan_of_its_own(open_backend: Open, held: contextlib.ExitStack) -> None:
    backend = open_backend({"one": SICK, "two": {}})
    supplier = await backend.supplier()
    supply = await supplier.supply(held)
    assert (supplier.plan.target.student, supply.plan.target.student) == ("one", "two")
    assert (supply.plan.student.name, supply.plan.job.model) == ("two", "two")
    assert await text_of(supply.stream) == "Hello, world!"


async def test_follower_answers_as_the_fallback_of_its_leader(open_backend: Open, held: contextlib.ExitStack) -> None:
    backend = open_backend({"one": SICK, "two": PACED})
    leader = await (await backend.supplier()).supply(held)
    follower = await (await backend.supplier(backend.order(key="s"))).supply(held)
    assert (leader.outcome, follower.outcome) == (Outcome.MISS, Outcome.JOIN)
    assert follower.plan.target == leader.plan.target
    assert follower.plan.job.id != leader.plan.job.id
    assert follower.plan.job.model == "two"


async def test_follower_that_cannot_be_planned_for_the_fallback_says_that_it_joined(
    open_backend: Open, held: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = open_backend({"one": SICK, "two": PACED})
    await (await backend.supplier()).supply(held)
    order = backend.order(key="s")
    supplier = await backend.supplier(order)

    def refuse(routed: Routed) -> Plan:
        raise InvalidParameter("not for this student")

    monkeypatch.setattr(order, "plan", refuse)
    with pytest.raises(JoinedFailure) as caught:
        await supplier.supply(held)
    assert caught.value.error.message == "not for this student"


async def test_first_error_stands_when_no_fallback_can_take_over(
    open_backend: Open, held: contextlib.ExitStack
) -> None:
    backend = open_backend({"one": {"hello": Line(refusal=QueueFull("one is full"))}, "two": SICK})
    with pytest.raises(QueueFull, match="one is full"):
        await (await backend.supplier()).supply(held)


async def test_full_server_still_gives_what_is_kept_and_shares_what_runs(
    open_backend: Open, held: contextlib.ExitStack
) -> None:
    backend = open_backend({"tiny": {"slow": Line(pieces=("a",) * 100, delay_s=0.05)}}, limits=Limits(max_requests=1))
    await text_of((await (await backend.supplier()).supply(held)).stream)
    await kept(backend)

    async def supply(prompt: str, key: str) -> Supply:
        return await (await backend.supplier(backend.order(prompt, key))).supply(held)

    assert (await supply("slow", "a")).outcome is Outcome.MISS
    assert (await supply("slow", "b")).outcome is Outcome.JOIN
    assert (await supply("hello", "c")).outcome is Outcome.HIT
    with pytest.raises(QueueFull, match=r"limits\.max_requests"):
        await supply("other", "d")


async def test_next_in_line_leads_when_the_first_is_cancelled(open_backend: Open, held: contextlib.ExitStack) -> None:
    backend = open_backend({"tiny": PACED})
    student = backend.context.students[0]
    student.admission.turns.bounds = replace(student.admission.turns.bounds, max_running=1)
    running = await (await backend.supplier(backend.order("hello there", "x"))).supply(held)
    first = asyncio.create_task((await backend.supplier()).supply(held))
    second = asyncio.create_task((await backend.supplier(backend.order(key="s"))).supply(held))
    while student.admission.turns.num_waiting == 0:
        await asyncio.sleep(0)
    first.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await first
    await text_of(running.stream)
    supply = await second
    assert supply.outcome is Outcome.MISS
    assert [request.id for request in backend.engines["tiny"].submitted] == ["x-0", "s-0"]
