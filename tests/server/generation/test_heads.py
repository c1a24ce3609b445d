"""Which head a request's sequences use, from the decision to the engine, and that answers of two heads are two."""

import contextlib
from collections.abc import Iterator

import pytest

from engines.scripted import Line
from engines.sequence import GenerationRequest
from models.errors import EngineUnhealthy
from models.student.manifest import HeadKind
from router.cache.result_cache import Outcome
from router.decision import RoutePreferences
from server.api.completions import CompletionOrder
from server.generation.envelope import Envelope
from server.generation.routing import Order
from server.wire.completions import CompletionRequest
from tests.server.generation.conftest import Backend, Open
from tests.server.generation.test_supply import kept, text_of

SICK = {"hello": Line(refusal=EngineUnhealthy("stopping"))}


@pytest.fixture
def held() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


async def outcome_of(
    backend: Backend, held: contextlib.ExitStack, head: HeadKind | None = None, order: Order | None = None
) -> Outcome:
    supply = await (await backend.supplier(order, head=head)).supply(held)
    await text_of(supply.stream)
    await kept(backend)
    return supply.outcome


def completion(backend: Backend, **fields: bool | int) -> CompletionOrder:
    body = CompletionRequest(model="auto", prompt="hello", temperature=0.0, **fields)  # type: ignore[arg-type]
    return CompletionOrder(backend.context, body, RoutePreferences(), Envelope(key="r"))


def last_submitted(backend: Backend, student: str = "tiny") -> GenerationRequest:
    return backend.engines[student].submitted[-1]


@pytest.mark.parametrize(("head", "needs"), [("cheap", False), ("exact", True)])
async def test_sequences_demand_the_exact_head_where_the_target_means_it(
    open_backend: Open, held: contextlib.ExitStack, head: HeadKind, needs: bool
) -> None:
    backend = open_backend(head="cheap")
    for order in (backend.order(), completion(backend)):
        await outcome_of(backend, held, head, order)
        assert last_submitted(backend).needs_exact_head is needs
        assert last_submitted(backend).head_on("cheap") == head


async def test_answers_of_two_heads_are_kept_apart(open_backend: Open, held: contextlib.ExitStack) -> None:
    backend = open_backend(head="cheap")
    heads: tuple[HeadKind, ...] = ("cheap", "exact", "cheap", "exact")
    outcomes = [await outcome_of(backend, held, head) for head in heads]
    assert outcomes == [Outcome.MISS, Outcome.MISS, Outcome.HIT, Outcome.HIT]


async def test_generations_of_two_heads_are_not_shared(open_backend: Open, held: contextlib.ExitStack) -> None:
    backend = open_backend({"tiny": {"hello": Line(pieces=("a", "b"), delay_s=0.05)}}, head="cheap")
    heads: tuple[HeadKind, ...] = ("cheap", "exact", "cheap")
    supplies = [await (await backend.supplier(head=head)).supply(held) for head in heads]
    assert [supply.outcome for supply in supplies] == [Outcome.MISS, Outcome.MISS, Outcome.JOIN]


async def test_whoever_demands_the_head_that_is_used_anyway_shares_its_answers(
    open_backend: Open, held: contextlib.ExitStack
) -> None:
    backend = open_backend(head="exact")
    assert await outcome_of(backend, held, "cheap") is Outcome.MISS
    assert await outcome_of(backend, held, "exact") is Outcome.HIT


async def test_fallback_uses_the_head_of_its_own_target(open_backend: Open, held: contextlib.ExitStack) -> None:
    backend = open_backend({"one": SICK, "two": {}}, head="cheap")
    supplier = await backend.supplier(head="cheap")
    supply = await supplier.supply(held)
    assert (supply.plan.target.student, supply.plan.target.head) == ("two", "cheap")
    assert not last_submitted(backend, "two").needs_exact_head
    exact = await (await backend.supplier(head="exact")).supply(held)
    assert (exact.plan.target.student, exact.plan.target.head) == ("two", "exact")
    assert last_submitted(backend, "two").needs_exact_head


@pytest.mark.parametrize("fields", [{}, {"logprobs": 1}, {"max_tokens": 0, "logprobs": 0}])
async def test_echo_is_answered_by_the_exact_head_and_says_so(
    open_backend: Open, held: contextlib.ExitStack, fields: dict[str, int]
) -> None:
    backend = open_backend(head="cheap")
    supplier = await backend.supplier(completion(backend, echo=True, **fields), head="cheap")
    assert supplier.plan.target.head == "exact"
    await text_of((await supplier.supply(held)).stream)
    assert last_submitted(backend).needs_exact_head


async def test_logprobs_alone_leave_the_choice_to_the_path_s_head(
    open_backend: Open, held: contextlib.ExitStack
) -> None:
    backend = open_backend(head="cheap")
    await outcome_of(backend, held, "cheap", completion(backend, logprobs=2))
    assert last_submitted(backend).head_on("cheap") == "cheap"


async def test_fingerprint_changes_with_the_head_and_the_digest_does_not(open_backend: Open) -> None:
    exact, cheap = open_backend(head="exact").context.students[0], open_backend(head="cheap").context.students[0]
    assert exact.fingerprint != cheap.fingerprint
    assert exact.digest == cheap.digest
