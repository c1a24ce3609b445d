"""Workload files: those that ship are good, and of a bad one every mistake is told."""

import json
from pathlib import Path

import pytest

from loadtest.measure.figures import figure_names
from loadtest.traffic.reading import WorkloadError, as_json, merged, read_workload, shipped_names, workload_from
from loadtest.traffic.schedules import read_trace

GOOD = {
    "name": "x",
    "schedule": {"kind": "poisson", "rate": 2},
    "prompts": {"tasks": {"math": 1}, "tokens": {"median": 20, "least": 10, "most": 40}},
    "answers": {"tokens": {"median": 8, "least": 8, "most": 8}},
}


@pytest.mark.parametrize("name", shipped_names())
def test_shipped_workloads_are_good(name: str) -> None:
    workload = read_workload(name, names=figure_names())
    assert workload.name == name
    assert workload.about
    if workload.schedule.trace is not None:
        assert len(read_trace(Path(workload.schedule.trace))) > 100


def test_headline_is_as_it_was_fixed() -> None:
    headline = read_workload("headline")
    assert set(headline.prompts.tasks.values()) == {1}
    assert list(headline.prompts.tasks) == ["math", "legal", "fact", "creative"]
    lengths, answers = headline.prompts.tokens, headline.answers.tokens
    assert (lengths.least, lengths.median, lengths.most) == (20, 80, 400)
    assert (answers.least, answers.most, headline.answers.ignore_eos) == (64, 64, True)
    assert headline.repeats is not None
    assert headline.repeats.share == 0.4
    assert (headline.schedule.kind, headline.schedule.duration_s, len(headline.seeds)) == ("poisson", 300, 5)
    assert (headline.slo.ttft_ms, headline.slo.tpot_ms) == (380, 50)


def test_every_mistake_is_listed() -> None:
    bad = merged(
        GOOD,
        {
            "seed": 3,
            "schedule": {"kind": "poison", "rate": -1, "warm_up": 4},
            "prompts": {"tasks": {"maths": 1}, "tokens": {"median": 20, "least": "ten"}},
            "tenants": [{"share": 1}],
            "thresholds": {"success_rate": {"least": "high"}},
        },
    )
    del bad["answers"]
    del bad["prompts"]["tokens"]["most"]
    with pytest.raises(WorkloadError) as caught:
        workload_from(bad, "x.toml")
    told = "\n".join(caught.value.problems)
    for part in (
        "seed: there is no such key; did you mean seeds?",
        "schedule.kind",
        "schedule.rate",
        "schedule.warm_up: there is no such key; did you mean warm_up_s?",
        "prompts.tasks",
        "prompts.tokens.least",
        "prompts.tokens.most is missing",
        "tenants[1].name is missing",
        "thresholds.success_rate.least",
        "answers is missing",
    ):
        assert part in told
    assert len(caught.value.problems) == 10
    assert str(caught.value).count("x.toml: ") == 10


def test_contradictions_are_listed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    changes = {
        "schedule": {"kind": "closed"},
        "prompts": {"tokens": {"median": 5}},
        "tenants": [{"name": "a", "key_env": "NO_SUCH_KEY"}],
        "thresholds": {"p95_tfft_ms": {"most": 3}, "success_rate": {}},
        "repeats": {"share": 0.5},
        "sessions": {"turns": 2},
    }
    with pytest.raises(WorkloadError) as caught:
        workload_from(merged(GOOD, changes), "x", figure_names())
    told = "\n".join(caught.value.problems)
    for part in ("schedule.concurrency is missing", "schedule.rate: a schedule of kind closed has none", "10, 5, 40"):
        assert part in told
    for part in ("NO_SUCH_KEY", "near it: p95_ttft_ms", "success_rate: give least or most", "repeats: sessions of"):
        assert part in told


def test_unreadable_and_unknown_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("name = \n")
    with pytest.raises(WorkloadError, match=r"bad\.toml: it cannot be read"):
        read_workload(str(tmp_path / "bad.toml"))
    with pytest.raises(WorkloadError, match=r"those that ship are .*headline"):
        read_workload("headlines")


def test_workload_survives_its_journey_to_a_worker() -> None:
    chat = read_workload("chat")
    assert workload_from(json.loads(as_json(chat)), "json") == chat
