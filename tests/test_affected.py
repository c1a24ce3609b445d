"""Which tests `make check` runs, and what it says of those it does not."""

from unittest.mock import Mock

import pytest

from tests.affected import ALWAYS, TimeLimit, imported_files, touched_tests

SOURCES = {
    "engines/__init__.py": "",
    "engines/loop.py": "from engines import slots\n",
    "engines/slots.py": "TABLE = 'slots.toml'",
    "engines/build.py": "def build():\n    import engines.loop",
    "models/errors.py": "",
    "tests/conftest.py": "",
    "tests/engines/conftest.py": "from engines.build import build",
    "tests/engines/test_loop.py": "from engines.loop import run",
    "tests/engines/test_slots.py": "import engines.slots",
    "tests/engines/test_words.py": "",
    "tests/models/test_errors.py": "import models.errors",
    "tests/test_imports.py": "",
}


def test_imports_are_found_wherever_they_stand() -> None:
    found = set(imported_files("def f():\n    from a.b import c\nimport d"))
    assert {"a/__init__.py", "a/b.py", "a/b/__init__.py", "a/b/c.py", "d.py"} <= found


def test_touched_are_the_page_then_importers_then_who_has_the_fixtures() -> None:
    assert touched_tests({"engines/slots.py"}, SOURCES) == [
        "tests/engines/test_slots.py",
        "tests/engines/test_loop.py",
        "tests/engines/test_words.py",
        *ALWAYS,
    ]


def test_changed_tests_come_before_the_pages_of_changed_files() -> None:
    touched = touched_tests({"models/errors.py", "tests/engines/test_words.py"}, SOURCES)
    assert touched[:2] == ["tests/engines/test_words.py", "tests/models/test_errors.py"]


def test_package_that_changed_touches_whoever_imports_from_it() -> None:
    assert "tests/engines/test_loop.py" in touched_tests({"engines/__init__.py"}, SOURCES)


def test_module_that_is_gone_still_touches_its_importers() -> None:
    left = {file: source for file, source in SOURCES.items() if file != "engines/loop.py"}
    assert touched_tests({"engines/loop.py"}, left)[0] == "tests/engines/test_loop.py"


@pytest.mark.parametrize("file", ["elsewhere/slots.toml", "engines/data/table.bin"])
def test_file_that_is_no_python_stands_for_those_that_name_it_or_lie_around_it(file: str) -> None:
    touched = touched_tests({file}, SOURCES)
    assert "tests/engines/test_slots.py" in touched
    assert "tests/models/test_errors.py" not in touched


def test_page_of_a_file_that_is_no_python_is_found_by_its_name() -> None:
    assert touched_tests({"IMPORTS.md"}, SOURCES) == ["tests/test_imports.py"]


def test_nothing_changed_touches_nothing() -> None:
    assert touched_tests(set(), SOURCES) == []


def test_time_limit_begins_no_test_when_it_is_over_and_says_of_which_file(request: pytest.FixtureRequest) -> None:
    reporter = Mock()
    patient, hasty = TimeLimit(60), TimeLimit(0)
    assert [patient.pytest_runtest_protocol(request.node) for _ in range(2)] == [None, None]
    assert [hasty.pytest_runtest_protocol(request.node) for _ in range(3)] == [None, True, True]
    for limit in (patient, hasty):
        limit.pytest_terminal_summary(reporter)
    reporter.line.assert_called_once_with("left out for want of time: 2 tests of tests/test_affected.py")
