"""When a path leaves default routing and when it comes back: as a table, and what operators may overrule."""

import dataclasses

import pytest

from router.quality.controller import (
    MOST_REST_S,
    Past,
    Pin,
    Pinned,
    Rules,
    State,
    decide,
    fix,
    forget_student,
    live_quality,
    pin,
    rest_s,
    unpin,
)
from router.quality.live import PathUse
from router.quality.window import Figure
from router.tasks import TASKS

RULES = Rules(floors=dict.fromkeys(TASKS, 0.75), min_samples=30, rest_s=600)
USE = PathUse("small", "legal", "wide", "cheap")
PINNED = Pinned("small", "legal", "wide")
NOW_S = 10_000.0


def figure(low: float, high: float, samples: float = 50.0) -> Figure:
    return Figure(
        kept=(low + high) / 2,
        low=low,
        high=high,
        gap=0.1,
        agreement=0.8,
        expected_agreement=0.9,
        effective_samples=samples,
        num_samples=round(samples),
    )


def out(since_s: float = 0.0, num_out: int = 1) -> State:
    return State(pasts={USE: Past(is_out=True, since_s=since_s, num_out=num_out)})


@pytest.mark.parametrize(
    ("state", "found", "action"),
    [
        (State(), figure(0.80, 0.90), None),
        (State(), figure(0.70, 0.80), None),
        (State(), figure(0.70, 0.75), None),
        (State(), figure(0.60, 0.74), "take_out"),
        (State(), figure(0.60, 0.74, samples=29.9), None),
        (out(), figure(0.60, 0.74), None),
        (out(), figure(0.70, 0.80), None),
        (out(), figure(0.76, 0.80), "put_back"),
        (out(), figure(0.76, 0.80, samples=29.9), None),
        (out(NOW_S - 599), figure(0.76, 0.80), None),
        (out(NOW_S - 601), figure(0.76, 0.80), "put_back"),
        (out(NOW_S - 1199, num_out=2), figure(0.76, 0.80), None),
        (out(NOW_S - 1201, num_out=2), figure(0.76, 0.80), "put_back"),
        (pin(State(), PINNED, is_open=True), figure(0.10, 0.20), None),
        (pin(out(), PINNED, is_open=False), figure(0.90, 0.95), None),
    ],
)
def test_decision(state: State, found: Figure, action: str | None) -> None:
    after, changes = decide(state, {USE: found}, RULES, NOW_S)
    assert [change.action for change in changes] == ([] if action is None else [action])
    if action is None:
        assert after == state
    else:
        assert after.is_out(USE) == (action == "take_out")
        assert (changes[0].use, changes[0].at_s) == (USE, NOW_S)
        assert "0.75" in changes[0].reason


def test_nothing_follows_from_nothing() -> None:
    assert decide(State(), {}, RULES, NOW_S) == (State(), ())


def test_each_return_takes_twice_as_long_up_to_a_bound_and_a_good_day_is_a_new_start() -> None:
    rests = [rest_s(Past(is_out=True, since_s=0.0, num_out=num), RULES) for num in range(1, 9)]
    assert rests[:4] == [600, 1200, 2400, 4800]
    assert max(rests) == MOST_REST_S
    back = State(pasts={USE: Past(is_out=False, since_s=NOW_S, num_out=5)})
    soon, _ = decide(back, {USE: figure(0.1, 0.2)}, RULES, NOW_S + 3600)
    late, _ = decide(back, {USE: figure(0.1, 0.2)}, RULES, NOW_S + 25 * 3600)
    assert (soon.pasts[USE].num_out, late.pasts[USE].num_out) == (6, 1)


def test_pins_overrule_figures_and_unpinning_lets_them_decide_again() -> None:
    state = pin(out(), PINNED, is_open=True)
    assert not state.is_out(USE)
    assert live_quality(state, {}, RULES).out == frozenset()
    state = unpin(state, PINNED)
    assert not state.is_out(USE)
    state, changes = decide(state, {USE: figure(0.1, 0.2)}, RULES, NOW_S)
    assert [change.action for change in changes] == ["take_out"]


def test_path_pinned_out_is_out_with_both_heads() -> None:
    live = live_quality(pin(State(), PINNED, is_open=False), {}, RULES)
    assert live.out == {USE, USE._replace(head="exact")}


def test_path_that_leaves_with_the_cheap_head_leaves_with_the_exact_one_too() -> None:
    exact = USE._replace(head="exact")
    assert live_quality(out(), {}, RULES).out == {USE, exact}
    only_exact = State(pasts={exact: Past(is_out=True, since_s=0.0, num_out=1)})
    assert live_quality(only_exact, {}, RULES).out == {exact}


def test_under_load_is_enough_what_surely_keeps_the_lower_floor() -> None:
    rules = dataclasses.replace(RULES, floors_under_load={"legal": 0.6})
    other = USE._replace(task="math")
    figures = {
        USE: figure(0.61, 0.70),
        USE._replace(path="narrow"): figure(0.55, 0.70),
        USE._replace(path="medium"): figure(0.90, 0.95, samples=5),
        other: figure(0.90, 0.95),
    }
    live = live_quality(out(), figures, rules)
    assert live.enough_under_load == {USE}
    assert live.out == {USE, USE._replace(head="exact")}
    pinned_out = pin(State(), PINNED, is_open=False)
    assert live_quality(pinned_out, figures, rules).enough_under_load == frozenset()


def test_standing_says_who_decided_and_why() -> None:
    exact = USE._replace(head="exact")
    assert (State().standing(USE).is_open, State().standing(USE).by) == (True, None)
    state, (change,) = decide(State(), {USE: figure(0.1, 0.2)}, RULES, NOW_S)
    for use in (USE, exact):
        standing = state.standing(use)
        assert (standing.is_open, standing.by, standing.reason) == (False, "controller", change.reason)
    only_exact = State(pasts={exact: Past(is_out=True, since_s=0.0, num_out=1)})
    assert only_exact.standing(USE).is_open
    state, _ = decide(state, {USE: figure(0.8, 0.9)}, RULES, NOW_S + 601)
    assert (state.standing(USE).is_open, state.standing(USE).by) == (True, "controller")
    state = pin(state, PINNED, is_open=False, reason="too slow")
    standing = state.standing(exact)
    assert (standing.is_open, standing.by, standing.reason) == (False, "operator", "too slow")


def test_operator_overrules_the_settings_and_both_overrule_figures() -> None:
    fixed = {PINNED: Pin(is_open=False, by="settings")}
    state = fix(State(), fixed)
    assert (state.standing(USE).is_open, state.standing(USE).by) == (False, "settings")
    assert decide(state, {USE: figure(0.9, 0.95)}, RULES, NOW_S) == (state, ())
    state = pin(state, PINNED, is_open=True)
    assert (state.standing(USE).is_open, state.standing(USE).by) == (True, "operator")
    assert live_quality(state, {}, RULES).out == frozenset()
    state = unpin(state, PINNED)
    assert live_quality(state, {}, RULES).out == {USE, USE._replace(head="exact")}
    assert fix(state, {}) == State()
    assert fix(dataclasses.replace(out(), fixed=fixed), {}) == State()


def test_student_that_is_gone_is_forgotten() -> None:
    state = fix(pin(out(), PINNED, is_open=False), {PINNED: Pin(is_open=True, by="settings")})
    assert forget_student(state, "small") == State()
    assert forget_student(state, "other") == state
