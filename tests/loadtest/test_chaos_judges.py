"""Every judge of `loadtest.chaos` passes what a good server showed and blames what a broken one did."""

import json
from collections import Counter
from pathlib import Path

import pytest

from loadtest.chaos.__main__ import run
from loadtest.chaos.attack import Attack, Observation
from loadtest.chaos.bodies import BODIES
from loadtest.chaos.caches import bytes_in
from loadtest.chaos.framing import FRAMING
from loadtest.chaos.limits import at_limits
from loadtest.chaos.processes import damage, own_servers
from loadtest.chaos.sharing import SHARING
from loadtest.chaos.trial import LEFT_BEHIND
from loadtest.chaos.verdict import MIB, Gap, Memory, judge

ATTACKS = {attack.name: attack for attack in (*FRAMING, *BODIES, *SHARING, *at_limits(1000), *own_servers(None))}


def seen(*outcomes: str, **figures: float) -> Observation:
    return Observation(
        outcomes=Counter(outcomes), figures={name.replace("_", " "): each for name, each in figures.items()}
    )


OFFERS = ("h2c good 200", "h2c smuggled 400", "websocket good 200", "websocket smuggled 400")
HOSTS = ("/v1/models localhost 200", "/v1/models 127.0.0.1 200", "/health localhost 200", "/health 127.0.0.1 200")
FOREIGN = (*HOSTS, "/health evil.example 200")
KEYS = ("utf-8 200", "unknown 401", "bytes 401")

RECORDED: dict[str, tuple[Observation, list[Observation]]] = {
    "endless trailers": (
        seen("431", "431", "431", MB_sent=3.1),
        [seen("431", "no end", MB_sent=40.0), seen("431", MB_sent=40.0), seen("431")],
    ),
    "headers behind the body": (
        seen("key 401", "admin key 401", "deadline 200", "id 200"),
        [
            seen("key 200", "admin key 401", "deadline 200", "id 200"),
            seen("key 401", "admin key 200", "deadline 200", "id 200"),
            seen("key 401", "admin key 401", "deadline 504", "id 200"),
            seen("key 401", "admin key 401", "deadline 200", "id 200 taken"),
            seen("key 401", "deadline 200"),
        ],
    ),
    "upgrade in two segments": (
        seen(*OFFERS, most_answers=1),
        [
            seen(*OFFERS, most_answers=2),
            seen(*OFFERS[1:], "h2c good 400", most_answers=1),
            seen(*OFFERS[:1], "h2c smuggled 200", most_answers=1),
            seen("h2c good silence", most_answers=0),
        ],
    ),
    "13 MB of pipelined requests": (
        seen("other 200", MB_taken=5.9),
        [seen("other 200", MB_taken=13.0), seen("other silence", MB_taken=1.0)],
    ),
    "half-closed requests": (
        seen("probe 200", "completion 200"),
        [seen("probe 200", "completion silence"), seen("probe 200")],
    ),
    "one, two and no Host": (
        seen("one 200", "two 400", "none 400"),
        [seen("one 200", "two 200", "none 400"), seen("one 200", "two 400", "none 200")],
    ),
    "keys beyond ASCII": (
        seen(*KEYS, "latin-1 200"),
        [seen(*KEYS, "latin-1 401"), seen(*KEYS[:2], "latin-1 200", "bytes 500")],
    ),
    "2,000,000 letters to /tokenize": (seen("200", "400"), [seen("500"), seen("no answer"), seen()]),
    "2,000,000 letters as a prompt": (seen("400", "400", "413"), [seen("200"), seen("400", "500"), seen("429")]),
    "50,000 messages": (seen("400", "400"), [seen("200"), seen("400", "no answer")]),
    "15 x 250 tokens x 20 logprobs": (seen("200"), [seen("500"), seen("no answer"), seen()]),
    "long answers, then another's deadline": (
        seen("200", "504"),
        [seen("200", "refused at once"), seen("500"), seen()],
    ),
    "12 costly schemas": (
        seen("400", "429", "other 200", slowest_s=0.5),
        [
            seen("400", "other 400", slowest_s=0.5),
            seen("400", "other 200", slowest_s=32.0),
            seen("400", "other 200", "other no answer", slowest_s=1.0),
            seen("500", "other 200", slowest_s=1.0),
        ],
    ),
    "2,000 optional properties": (
        seen("wide 400", "allowed 200"),
        [seen("wide 500", "allowed 200"), seen("wide 200", "allowed 200"), seen("wide 400", "allowed 500")],
    ),
    "logit_bias on all ids": (seen("200"), [seen("500"), seen("no answer")]),
    "min_p 1e-30": (seen("200"), [seen("500"), seen("no answer")]),
    "top_p 0.9999999": (seen("200"), [seen("500"), seen("no answer")]),
    "140 connections, 160 files": (
        seen("200", "503", "afterwards 200", "warned"),
        [
            seen("200", "503", "silence", "afterwards 200", "warned"),
            seen("200", "afterwards 200", "warned"),
            seen("200", "503", "afterwards silence", "warned"),
            seen("200", "503", "afterwards 200", "not warned"),
        ],
    ),
    "foreign Host without keys": (
        seen(*FOREIGN, "/v1/models evil.example 403"),
        [seen(*FOREIGN, "/v1/models evil.example 200"), seen(*HOSTS, "/health evil.example 403")],
    ),
    "SIGTERM, clients that do not read": (
        seen("status 0", s_to_the_end=4.2),
        [
            seen("status 0", s_to_the_end=12.0),
            seen("status 0", "traceback", s_to_the_end=4.0),
            seen("status -9", s_to_the_end=1.0),
            seen("lives on", s_to_the_end=14.0),
        ],
    ),
    "4 MB of the weights flipped": (
        seen("unhealthy, chat 503"),
        [seen("ready, chat 200"), seen("unhealthy, chat 200"), seen("ready, chat 500"), seen()],
    ),
    "read-only cache": (seen("ready, chat 200"), [seen("does not start"), seen("loading, chat 503"), seen()]),
    "pages": (seen("200"), [seen("200", "500"), seen()]),
}


@pytest.mark.parametrize("name", [name for name in ATTACKS if not name.startswith("at its limit")])
def test_judge_tells_good_from_bad(name: str) -> None:
    good, bad = RECORDED[name]
    assert ATTACKS[name].problems(good) == []
    for one in bad:
        assert ATTACKS[name].problems(one), one


@pytest.mark.parametrize("name", [name for name in ATTACKS if name.startswith("at its limit")])
def test_endpoint_at_its_limit_answers_or_refuses(name: str) -> None:
    assert ATTACKS[name].problems(seen("400")) == []
    assert ATTACKS[name].problems(seen("500"))
    assert ATTACKS[name].problems(seen("no answer"))


def test_every_recorded_observation_is_of_an_attack() -> None:
    assert RECORDED.keys() <= ATTACKS.keys()


def test_what_this_machine_cannot_try_is_neither_good_nor_bad() -> None:
    skipped = judge(ATTACKS["read-only cache"], Observation(skipped="no mounts"), seconds=0.0)
    assert (skipped.verdict, skipped.problems) == ("skip", ())


def test_what_is_left_behind_fails() -> None:
    assert LEFT_BEHIND.problems(seen()) == []
    assert LEFT_BEHIND.problems(seen("vllm:num_requests_running is 1 with nothing to do"))


@pytest.mark.parametrize(
    ("longest_ms", "control_ms", "is_bad"), [(49, 1, False), (200, 45, False), (51, 10, True), (1900, 3, True)]
)
def test_gap_fails_when_it_is_long_and_many_times_the_control(longest_ms: int, control_ms: int, is_bad: bool) -> None:
    gap = Gap(longest_ms=longest_ms, control_ms=control_ms)
    row = judge(ATTACKS["pages"], seen("200"), seconds=1.0, gap=gap)
    assert (row.verdict == "FAIL") is is_bad


@pytest.mark.parametrize(
    ("peak", "after", "bound", "is_bad"),
    [(900, 109, None, False), (900, 111, None, True), (150, 100, 64, False), (170, 100, 64, True)],
)
def test_memory_fails_when_it_stays_or_was_too_much(peak: int, after: int, bound: int | None, is_bad: bool) -> None:
    memory = Memory(before=100 * MIB, peak=peak * MIB, after=after * MIB, waited_s=30.0)
    attack = Attack(name="x", expected="", run=lambda target: seen("200"), rules=(), max_growth_mib=bound)
    assert bool(judge(attack, seen("200"), seconds=1.0, memory=memory).problems) is is_bad


@pytest.mark.parametrize(
    ("after", "cached", "is_bad"), [(180, 120, False), (200, 120, True), (109, 0, True), (85, 20, False)]
)
def test_what_bounded_caches_hold_is_no_growth(after: int, cached: int, is_bad: bool) -> None:
    """120 MiB, of which caches held 60, with a growth of 10 % of the other 60."""
    memory = Memory(
        before=120 * MIB,
        peak=200 * MIB,
        after=after * MIB,
        waited_s=30.0,
        cached_before=60 * MIB,
        cached_after=cached * MIB,
    )
    assert bool(memory.problems(None)) is is_bad


def test_caches_are_counted_from_the_metrics() -> None:
    metrics = """# HELP fenhe_cache_bytes x
fenhe_cache_bytes 100.0
fenhe_prefix_cache_bytes{engine="0",model_name="a"} 1.6e+07
fenhe_prefix_cache_bytes{engine="0",model_name="b"} 20.0
fenhe_grammar_bytes{student="a"} 3000.0
fenhe_kv_used_bytes{engine="0",model_name="a"} 7.0
"""
    assert bytes_in(metrics) == 16_003_120
    with pytest.raises(KeyError, match="fenhe_grammar_bytes"):
        bytes_in(metrics.replace("fenhe_grammar_bytes", "fenhe_grammars"))


def test_client_that_is_not_answered_fails_the_attack() -> None:
    row = judge(ATTACKS["pages"], seen("200"), seconds=1.0, failures=("probe: 503", "probe: 503"))
    assert row.problems == ("another client was not answered: probe: 503",)


def test_nothing_is_measured_where_a_figure_is_missing() -> None:
    assert ATTACKS["13 MB of pipelined requests"].problems(seen("other 200")) == ["MB taken was not measured"]


def test_run_fails_on_any_regression(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gap, memory = Gap(longest_ms=900, control_ms=2), Memory(before=MIB, peak=2 * MIB, after=MIB, waited_s=3.0)
    good = judge(ATTACKS["pages"], seen("200"), seconds=1.0, memory=memory)
    bad = judge(ATTACKS["pages"], seen("200"), seconds=1.0, gap=gap)
    assert run(iter([good]), None) == 0
    assert run(iter([good, bad]), tmp_path / "rows.json") == 1
    printed = capsys.readouterr().out
    assert "900 ms | 450.0" in printed
    assert "failed: pages" in printed
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["verdict"] for row in rows] == ["ok", "FAIL"]
    assert rows[0]["memory"]["waited_s"] == 3.0


def test_damage_leaves_the_student_itself_alone(tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.mkdir()
    copy.mkdir()
    files = {
        "a.int8.weights": b"x" * 900,
        "a.w8a8.weights": b"y" * 1000,
        "b.w8a8.weights": b"z" * 10,
        "verified.json": b"{}",
    }
    for name, content in files.items():
        (source / name).write_bytes(content)
    damage(source, copy)
    assert {file.name: file.read_bytes() for file in source.iterdir()} == files
    assert sorted(file.name for file in copy.iterdir()) == sorted(files.keys() - {"verified.json"})
    assert (copy / "b.w8a8.weights").read_bytes() == files["b.w8a8.weights"]
    for name in ("a.int8.weights", "a.w8a8.weights"):
        assert (copy / name).read_bytes() != files[name]
        assert (copy / name).stat().st_size == (source / name).stat().st_size
        assert (copy / name).stat().st_mtime_ns == (source / name).stat().st_mtime_ns
