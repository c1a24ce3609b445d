"""The cache measurement sends the share of repeats it was asked for, with and without the cache alike."""

from pathlib import Path

from loadtest.repeats import NUM_HOT, Options, bodies, run


def test_bodies_repeat_the_wanted_share() -> None:
    texts = [body["messages"][0]["content"] for body in bodies(Options(share=0.75, num_requests=2000), 1)]
    num_fresh = len(set(texts)) - NUM_HOT
    assert 420 < num_fresh < 580
    assert bodies(Options(), 3) == bodies(Options(), 3)


def test_run_tells_both_rates(student: Path) -> None:
    figures = run(Options(num_requests=30, num_clients=4, num_rounds=1, max_tokens=4, student=student))
    assert figures["requests_per_s_without"] > 0
    assert figures["requests_per_s_with"] > 0
    assert len(figures["ratios"]) == 1
