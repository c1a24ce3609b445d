"""Sessions: the shares of a workload are those of the run, and every worker draws the same ones."""

from collections import Counter

import pytest

from loadtest.traffic.reading import merged, workload_from
from loadtest.traffic.sessions import BLOCK, SessionPlan
from loadtest.traffic.workload import Workload

BASE = {
    "name": "x",
    "schedule": {"kind": "closed", "concurrency": 1},
    "prompts": {
        "tasks": {"math": 1, "legal": 1, "fact": 1, "creative": 1},
        "tokens": {"median": 20, "least": 10, "most": 40},
    },
    "answers": {"tokens": {"median": 8, "least": 8, "most": 8}},
}


def workload(changes: dict[str, object]) -> Workload:
    return workload_from(merged(BASE, changes), "test")


@pytest.mark.parametrize("share", [0.4, 0.33])
def test_share_of_repeats_is_exact_and_they_are_those_that_were_asked_before(share: float) -> None:
    plan = SessionPlan(workload({"repeats": {"share": share, "population": 8}}), seed=2)
    sessions = [plan.session(index) for index in range(50 * BLOCK)]
    assert abs(sum(one.is_repeat for one in sessions) - share * len(sessions)) <= 1
    known = {plan.repeated(number).texts for number in range(8)}
    assert {one.texts for one in sessions if one.is_repeat} <= known
    fresh = [one.texts for one in sessions if not one.is_repeat]
    assert len(set(fresh)) == len(fresh)
    assert not known & set(fresh)


def test_some_prompts_are_repeated_far_more_often() -> None:
    plan = SessionPlan(workload({"repeats": {"share": 1.0, "population": 40}}), seed=2)
    counts = Counter(plan.session(index).texts for index in range(2000)).most_common()
    assert counts[0][1] > 4 * counts[20][1]


def test_tasks_are_equally_frequent_in_every_stretch() -> None:
    plan = SessionPlan(workload({"repeats": {"share": 0.4}}), seed=5)
    for start in (0, 37, 400):
        counts = Counter(plan.session(index).task for index in range(start, start + 100))
        assert set(counts.values()) <= {24, 25, 26}


def test_plan_is_the_same_for_a_seed_and_another_for_another() -> None:
    one, same, other = (SessionPlan(workload({}), seed) for seed in (1, 1, 2))
    assert [one.session(index) for index in (9, 3)] == [same.session(index) for index in (9, 3)]
    assert one.session(3) != other.session(3)


def test_bodies_ask_for_what_the_workload_says() -> None:
    changes = {"answers": {"temperature": 0.5}, "body": {"fenhe": {"cache": False}}, "model": "m"}
    plan = SessionPlan(workload(changes), seed=1)
    body = plan.body(plan.session(0), 0, [])
    assert (body["model"], body["temperature"], body["max_tokens"], body["ignore_eos"]) == ("m", 0.5, 8, True)
    assert body["fenhe"] == {"cache": False}
    assert body["stream_options"] == {"include_usage": True}


def test_bound_requests_have_a_schema_and_are_as_many_as_the_workload_says() -> None:
    plan = SessionPlan(workload({"behaviour": {"bound_share": 0.25, "cancel_share": 0.1}}), seed=1)
    sessions = [plan.session(index) for index in range(1000)]
    assert 200 < sum(one.is_bound for one in sessions) < 300
    assert 60 < sum(0 in one.leaves for one in sessions) < 140
    bound = next(one for one in sessions if one.is_bound)
    body = plan.body(bound, 0, [])
    assert body["response_format"]["type"] == "json_schema"
    assert "ignore_eos" not in body


def test_turns_carry_what_was_said_and_share_a_system_prompt() -> None:
    plan = SessionPlan(workload({"sessions": {"turns": 3}, "prompts": {"system_tokens": 50}}), seed=1)
    session = plan.session(0)
    messages = plan.body(session, 2, ["one", "two"])["messages"]
    assert [message["role"] for message in messages] == ["system", *["user", "assistant"] * 2, "user"]
    assert [message["content"] for message in messages[2::2]] == ["one", "two"]
    assert messages[0] == plan.body(plan.session(1), 0, [])["messages"][0]


def test_tenants_take_their_shares() -> None:
    plan = SessionPlan(workload({"tenants": [{"name": "a", "share": 3}, {"name": "b", "share": 1}]}), seed=1)
    counts = Counter(plan.session(index).tenant for index in range(1000))
    assert 700 < counts["a"] < 800
