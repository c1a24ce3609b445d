"""Tenants share steps: what is costly to choose takes turns, nothing starves, and nobody waits alone."""

import itertools
import random
from collections import Counter
from collections.abc import Callable

import pytest

from engines.scheduling.row_pace import RowPace
from engines.scheduling.turns import MAX_KNOWN_TENANTS, PASS_SHARE, Turns
from engines.sequence import (
    PLAIN_CHOOSING_S,
    GenerationRequest,
    SamplingParams,
    Sequence,
    SequenceStatus,
    new_sequence,
)

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


def make_turns(busy_step_s: float | None = None) -> Turns:
    """Rows have two thirds of a bounded step."""
    return Turns(RowPace(busy_step_s))


def turns_after_a_pass() -> Turns:
    turns = make_turns()
    turns.note_pass([], PASS_S)
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
    costly, light = rows_of("a", 8, cost_s=1.0), rows_of("b", 3, cost_s=PLAIN_CHOOSING_S)
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


def served_beside_newcomers(
    turns: Turns, long: list[Sequence], light: list[Sequence], newcomer: Callable[[int], Sequence], num_slots: int
) -> list[list[Sequence]]:
    """As `served`, while in every step new sequences fill the slots that are free, each for one token."""
    short: list[Sequence] = []
    steps, numbers = [], itertools.count()
    for _ in range(1000):
        while len(long) + len(light) + len(short) < num_slots:
            short.append(newcomer(next(numbers)))
        (step,) = served(turns, [*long, *light, *short], 1)
        short = [row for row in short if row not in step]
        steps.append(step)
    return steps


def test_long_row_has_every_other_turn_beside_short_ones_of_its_tenant() -> None:
    long, light = rows_of("a", 1, cost_s=2.0), rows_of("b", 1)
    steps = served_beside_newcomers(
        turns_after_a_pass(), long, light, lambda number: make_sequence(f"short{number}", "a", 2.0), num_slots=3
    )
    num_turns = 1000 * PASS_SHARE * PASS_S / 2 / 2.0
    assert abs(times(steps)["a0"] - num_turns / 2) <= 1
    assert times(steps)["b0"] == 1000


@pytest.mark.parametrize("seed", range(10))
def test_no_row_waits_longer_than_all_others_turns_take(seed: int) -> None:
    """Whatever comes while it waits."""
    rng = random.Random(seed)
    num_long, num_slots, dearest_s = rng.randint(1, 5), 8, 2.0
    long = [make_sequence(f"long{number}", "a", rng.uniform(0.1, dearest_s)) for number in range(num_long)]
    steps = served_beside_newcomers(
        turns_after_a_pass(),
        long,
        rows_of("b", 1),
        lambda number: make_sequence(f"s{number}", "a", rng.choice([None, 0.1, dearest_s])),
        num_slots,
    )
    budget_s = PASS_SHARE * PASS_S / 2
    bound = num_slots * dearest_s / budget_s
    for row in long:
        at = [-1, *(number for number, step in enumerate(steps) if row in step), len(steps)]
        assert max(after - before for before, after in itertools.pairwise(at)) <= bound


def test_newcomers_do_not_take_the_turn_of_another_tenant_where_all_wait() -> None:
    steps = served_beside_newcomers(
        turns_after_a_pass(),
        rows_of("a", 1, cost_s=1000.0),
        [],
        lambda number: make_sequence(f"short{number}", "b", 1000.0),
        num_slots=2,
    )
    assert abs(times(steps)["a0"] - 500) <= 2


def test_row_that_becomes_costly_queues_behind_those_that_wait() -> None:
    turns = turns_after_a_pass()
    changing, costly, light = make_sequence("changing", "a"), rows_of("a", 3, cost_s=1.0), rows_of("b", 1)
    rows = [changing, *costly, *light]
    assert times(served(turns, rows, 21)) == {"changing": 21, "b0": 21, "a0": 4, "a1": 3, "a2": 3}
    changing.choosing_s = 1.0
    order = [row.id for step in served(turns, rows, 8) for row in step if row.tenant == "a"]
    assert order == ["a1", "a2", "a0", "changing"]


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
    assert all(len(step) == 5 for step in served(make_turns(), rows, 5))


ROW_S = 0.01
"""What each row adds to a pass, which takes 5 ms without any."""


def running(tenant: str, count: int, cost_s: float | None = 0.0) -> list[Sequence]:
    rows = rows_of(tenant, count, cost_s)
    for row in rows:
        row.status = SequenceStatus.DECODING
    return rows


def served_by_passes(turns: Turns, rows: list[Sequence], num_steps: int) -> list[list[Sequence]]:
    """As `served`, with passes that take longer the more rows they have."""
    steps = []
    for _ in range(num_steps):
        steps += served(turns, rows, 1)
        turns.note_pass(steps[-1], 0.005 + ROW_S * len(steps[-1]))
    return steps


def test_many_rows_take_turns_beside_a_tenant_that_has_few() -> None:
    turns, light, heavy = make_turns(busy_step_s=0.15), running("b", 1), running("a", 20)
    served_by_passes(turns, light, 1)
    steps = served_by_passes(turns, [*heavy, *light], 400)
    found = times(steps[20:])
    assert found["b0"] == 380
    assert {len(step) for step in steps[20:]} <= {9, 10}  # 0.105 s with ten rows, which is tried again and again
    in_turns = [found[row.id] for row in heavy]
    assert max(in_turns) - min(in_turns) <= 1
    assert sum(in_turns) >= 380 * 8


def test_step_that_is_bounded_has_fewer_rows_where_choosing_takes_long() -> None:
    """Of another tenant's half of the choosing: ten rows of 10 ms and 1 ms fill a step of 0.11 s."""
    numbers = []
    for cost_s in (0.0, 0.001):
        turns, light, heavy = make_turns(busy_step_s=0.165), running("b", 1), running("a", 20, cost_s)
        served_by_passes(turns, light, 1)
        numbers.append({len(step) for step in served_by_passes(turns, [*heavy, *light], 400)[20:]})
    assert numbers == [{10, 11}, {9, 10}]


def test_rows_take_no_turns_where_nobody_gains_by_it() -> None:
    """One tenant alone, and tenants of which none has few rows."""
    for rows in (running("a", 20), [*running("a", 10), *running("b", 10)], [*running("a", 1), *running("b", 2)]):
        turns = make_turns(busy_step_s=0.15)
        served_by_passes(turns, running("c", 1), 1)
        assert all(len(step) == len(rows) for step in served_by_passes(turns, rows, 50))


def test_bound_of_a_pass_is_shared_by_tenants_equally() -> None:
    turns = make_turns(busy_step_s=0.15)
    served_by_passes(turns, running("d", 1), 1)
    rows = [*running("a", 20), *running("b", 6), *running("c", 2)]
    steps = served_by_passes(turns, rows, 400)[20:]
    found = Counter(row.tenant for step in steps for row in step)
    assert found["c"] == 2 * len(steps)
    assert abs(found["a"] - found["b"]) <= len(steps)


def test_rows_too_many_and_too_dear_have_equally_many_turns() -> None:
    """Neither those that a pass has no room for nor those that wait for time to choose are forgotten."""
    turns = make_turns(busy_step_s=0.15)
    dear, light = running("a", 20, cost_s=0.005), running("b", 1)
    for rows, seconds in ((light, 0.015), (dear, 0.205)):
        turns.note_pass(rows, seconds)
    found = times(served_by_passes(turns, [*dear, *light], 2000))
    assert found["b0"] == 2000
    in_turns = [found[row.id] for row in dear]
    assert min(in_turns) >= max(in_turns) - 1 > 90


def test_rows_that_wait_for_time_to_choose_keep_no_others_of_their_tenant_from_running() -> None:
    """They are the ones that waited longest, and would fill what a pass has room for."""
    turns = make_turns(busy_step_s=0.15)
    light, mixed = running("b", 1), running("a", 20)
    for row in mixed[:10]:
        row.choosing_s = 0.02
    served_by_passes(turns, light, 1)
    found = times(served_by_passes(turns, [*mixed, *light], 1000)[200:])
    assert found["b0"] == 800
    dear, cheap = [found[row.id] for row in mixed[:10]], [found[row.id] for row in mixed[10:]]
    assert max(dear) - min(dear) <= 1 < min(dear)
    assert max(cheap) - min(cheap) <= 1
    assert min(cheap) > 4 * max(dear)


def test_steps_in_which_a_tenants_dear_row_waits_are_bounded_too() -> None:
    """Else its turn would come later."""
    turns = make_turns(busy_step_s=0.15)
    dear, many = running("b", 1, cost_s=0.06), running("a", 20)
    served_by_passes(turns, running("c", 1), 1)
    steps = served_by_passes(turns, [*many, *dear], 400)[20:]
    assert any(dear[0] not in step for step in steps)
    assert max(len(step) for step in steps) <= 10
