"""Mistakes in settings as data: which setting they are about, and what their common message says."""

import pytest

from models.errors import ConfigError, Problem


@pytest.mark.parametrize(
    ("problem", "name", "is_about"),
    [
        (Problem(setting="keys.file", said="x"), "keys", True),
        (Problem(setting="keys.file", said="x"), "keys.file", True),
        (Problem(setting="keys.file", said="x"), "keys.fil", False),
        (Problem(setting="fast_under_load", others=("fast",), said="x"), "fast", True),
        (Problem(setting="fast_under_load", said="x"), "fast", False),
        (Problem(said="keys.file"), "keys", False),
    ],
)
def test_problem_is_about_settings_not_about_words(problem: Problem, name: str, is_about: bool) -> None:
    assert problem.is_about(name) is is_about


def test_problem_within_a_section_has_its_name_everywhere() -> None:
    inner = Problem(setting="fast", others=("balanced",), said="fast is more than balanced")
    assert inner.within("router.") == Problem(
        setting="router.fast", others=("router.balanced",), said="router.fast is more than balanced"
    )


def test_config_error_has_its_problems_one_by_one_and_all_in_its_message() -> None:
    error = ConfigError("one", Problem(setting="port", said="two"))
    assert (str(error), error.message) == ("one; two", "one; two")
    assert error.problems == (Problem(said="one"), Problem(setting="port", said="two"))
