"""Tenants share steps: what is costly to choose takes turns, nothing starves, and nobody waits alone."""

import random
from collections import Counter

import pytest

from engines.scheduling.turns import FREE_S, MAX_KNOWN_TENANTS, PASS_SHARE, Turns
from engines.sequence import GenerationRequest, SamplingParams, Sequence, new_sequence

PASS_S = 2.0


def make_sequence(id: str, tenant: str, cost_s: float | None = 0.0) -> Sequence:
    request = GenerationRequest(
        id=id, prompt_token_ids=(1, 2), path="full", sampling=SamplingParams(max_tokens=9), cache_salt=tenant
    )
    sequence = new_sequence(request, lambda _: b"")
    sequence.choosing_s = cost_s
    return sequence


def rows_of(tenant: str, count: int, cost_s: float | None = 0.0) -> list[Sequence]:
    return [make_sequence(f"{tenant}{number}", tenant, cost_s) for number in range(count)]


def turns_after_a_pass() -> Turns:
    turns = Turns()
    turns.note_pass(PASS_S)
    return turns


def served(turns: Turns, rows: list[Sequence], num_steps: int) -> list[list[Sequence]]:
    """Who took part in each step."""
    tenants = frozenset(row.tenant for row in rows)
    steps = []
    for _ in range(num_steps):
        waiting = turns.waiting(rows, tenants)
        steps.append([row for row in rows if row.id not in waiting])
    return steps


def times(steps: list[list[Sequence]]) -> Counter[str]:
    return Counter(row.id for step in steps for row in step)


def test_one_tenant_shares_with_nobody() -> None:
    rows = rows_of("", 8, cost_s=100.0)
    assert all(len(step) == 8 for step in served(turns_after_a_pass(), rows, 20))


def test_costly_rows_take_turns_beside_another_tenant_and_cheap_ones_do_not() -> None:
    costly, light = rows_of("a", 8, cost_s=1.0), rows_of("b", 3, cost_s=FREE_S)
    steps = served(turns_after_a_pass(), [*costly, *light], 320)
    found = times(steps)
    assert all(found[row.id] == 320 for row in light)
    share = 320 * PASS_SHARE * PASS_S / 2 / 8  # of the steps, where each has one token for 1 s
    assert all(abs(found[row.id] - share) <= 1 for row in costly)
    assert max(len(step) for step in steps) == len(light) + 1


@pytest.mark.parametrize("seed", range(10))
def test_choosing_takes_no_longer_than_its_share_of_the_passes(seed: int) -> None:
    """Whatever it costs: no sequence waits for ever, and no tenant has more than its part, one row's cost aside."""
    rng = random.Random(seed)
    rows = [
        make_sequence(f"{tenant}{number}", tenant, rng.choice([0.0, 0.01, 0.3, 2.0]))
        for tenant in "abc"[: rng.randint(2, 3)]
        for number in range(rng.randint(1, 8))
    ]
    rows.append(make_sequence("light", "d"))
    num_steps, num_tenants = 2000, len({row.tenant for row in rows})
    steps = served(turns_after_a_pass(), rows, num_steps)
    found = times(steps)
    for tenant in {row.tenant for row in rows}:
        own = [row for row in rows if row.tenant == tenant]
        spent = sum(found[row.id] * (row.choosing_s or 0.0) for row in own)
        dearest = max(row.choosing_s or 0.0 for row in own)
        assert spent <= num_steps * PASS_SHARE * PASS_S / num_tenants + dearest
    assert found["light"] == num_steps
    assert all(found[row.id] > 10 for row in rows)


def test_dear_row_is_not_passed_for_ever() -> None:
    rows = [make_sequence("dear", "a", 5.0), *rows_of("a", 6, cost_s=0.4), make_sequence("light", "b")]
    found = times(served(turns_after_a_pass(), rows, 400))
    assert found["dear"] >= found["a0"] - 1 > 20


def test_somebody_always_takes_part() -> None:
    rows = [make_sequence("x", "a", 100.0), make_sequence("y", "b", 100.0)]
    steps = served(turns_after_a_pass(), rows, 40)
    assert all(steps)
    assert abs(times(steps)["x"] - times(steps)["y"]) <= 1


def test_new_sequences_cost_what_their_tenant_s_did() -> None:
    turns = turns_after_a_pass()
    known, light = rows_of("a", 1, cost_s=1.0), make_sequence("light", "b", None)
    served(turns, [*known, light], 1)
    new = rows_of("a", 8, cost_s=None)
    assert all(len(step) <= 2 for step in served(turns, [*new, light], 10))
    assert all(light in step for step in served(turns, [*new, light], 10))


def test_nothing_is_remembered_without_end() -> None:
    turns = turns_after_a_pass()
    for number in range(3 * MAX_KNOWN_TENANTS):
        served(turns, [make_sequence("x", f"t{number}", 1.0), make_sequence("y", "b")], 1)
    assert len(turns._typical) <= MAX_KNOWN_TENANTS
    assert turns._credits.keys() <= {f"t{3 * MAX_KNOWN_TENANTS - 1}", "b"}


def test_nobody_waits_before_a_pass_was_measured() -> None:
    rows = [*rows_of("a", 4, cost_s=9.0), make_sequence("light", "b")]
    assert all(len(step) == 5 for step in served(Turns(), rows, 5))
