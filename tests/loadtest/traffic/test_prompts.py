"""Prompts: every task in both languages, of the wanted length, no two alike."""

import random
import statistics

import pytest

from loadtest.traffic.prompts import FOLDER, compose, draw_length, estimate_tokens, system_prompt, texts
from loadtest.traffic.workload import Lengths

TASKS = ("math", "legal", "fact", "creative", "general")


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("task", TASKS)
def test_prompts_of_every_task_and_language_have_their_length(task: str, language: str) -> None:
    for wanted in (100, 400, 4096):
        prompt = compose(task, language, wanted, random.Random(7))
        assert estimate_tokens(prompt) == pytest.approx(wanted, rel=0.25)
        assert "{" not in prompt


def test_every_file_says_where_it_comes_from() -> None:
    files = sorted(FOLDER.glob("*.toml"))
    assert [file.stem for file in files] == sorted(TASKS)
    for file in files:
        assert file.read_text(encoding="utf-8").startswith("# Written for fenhe (Apache-2.0)")


def test_short_prompts_are_a_question_alone() -> None:
    prompt = compose("math", "en", 5, random.Random(1))
    assert len(prompt.split(". ")) <= 3
    assert len(texts("math", "en").questions) >= 10


def test_no_two_prompts_are_alike() -> None:
    prompts = [compose("fact", "en", 60, random.Random(seed)) for seed in range(2000)]
    assert len(set(prompts)) == 2000


def test_lengths_have_their_median_and_stay_within_their_bounds() -> None:
    lengths = Lengths(median=80, least=20, most=400)
    found = [draw_length(lengths, random.Random(seed)) for seed in range(4000)]
    assert min(found) >= 20
    assert max(found) <= 400
    assert statistics.median(found) == pytest.approx(80, rel=0.1)
    assert draw_length(Lengths(median=64, least=64, most=64), random.Random(1)) == 64


def test_system_prompt_is_always_the_same() -> None:
    assert system_prompt(120) == system_prompt(120)
    assert estimate_tokens(system_prompt(120)) == pytest.approx(120, rel=0.3)
