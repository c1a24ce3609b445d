"""The page of all settings is what the fields say."""

from pathlib import Path

import pytest

from server.settings.config import StudentConfig
from server.settings.fields import find_fields
from server.settings.table import describe_values, settings_page
from tests.generated import assert_up_to_date

PAGE = Path(__file__).parents[3] / "docs" / "settings.md"


def test_page_of_all_settings_is_up_to_date() -> None:
    assert_up_to_date(PAGE, settings_page())


def test_page_has_a_row_for_every_setting() -> None:
    rows = [line for line in settings_page().splitlines() if line.startswith("| `")]
    assert len(rows) == len(find_fields()) + len(find_fields(StudentConfig))
    assert len({row.count("|") for row in rows}) == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("port", "a whole number, from 0 to 65535"),
        ("access_log", "`true` or `false`"),
        ("log_format", "one of `text`, `json`"),
        ("admission.default_deadline_s", "a number, more than 0"),
        ("keys.sha256", "a list; each a SHA-256 in hexadecimal (64 characters)"),
        ("engine.native_folder", "a path"),
        ("student", "a path, or tables"),
        ("online_quality.pins", "a table; each one of `in`, `out`"),
    ],
)
def test_row_says_what_may_be_written(name: str, words: str) -> None:
    (setting,) = (one for one in find_fields() if one.name == name)
    assert describe_values(setting) == words
