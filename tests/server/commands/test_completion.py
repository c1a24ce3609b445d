"""What the TAB key offers, asked for as shells do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.__main__ import COMMANDS as LOADTEST_COMMANDS
from server.commands.cli import COMMANDS, LOADTESTS, WHOLE_LINE, main
from server.commands.completion import SHELLS, words_of


def offered(line: str, tmp_path: Path) -> list[str]:
    """Written to the file that argcomplete's scripts name where a shell has no spare descriptors."""
    answer = tmp_path / "answer"
    environ = {
        **os.environ,
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    subprocess.run([sys.executable, "-m", "server.commands.cli"], env=environ, timeout=60, check=True)
    return [word.strip() for word in answer.read_text().split("\n")]


@pytest.mark.parametrize(
    ("line", "some"),
    [
        ("fenhe ", {*COMMANDS, *WHOLE_LINE}),
        ("fenhe cha", {"chat"}),
        ("fenhe chat --te", {"--temperature"}),
        ("fenhe route --quality ", {"fast", "balanced", "high", "full"}),
        ("fenhe bench e", {"engines"}),
        ("fenhe loadtest c", {"compare", "coldstart"}),
        ("fenhe completion f", {"fish"}),
        ("fenhe chat 'an open quot", set()),
    ],
)
def test_tab_offers_what_may_come(line: str, some: set[str], tmp_path: Path) -> None:
    assert some <= set(offered(line, tmp_path))


def test_names_of_load_tests_are_theirs() -> None:
    assert set(LOADTESTS) == set(LOADTEST_COMMANDS)


@pytest.mark.parametrize("shell", SHELLS)
def test_shells_get_code_that_asks_fenhe(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    code = capsys.readouterr().out
    assert "_ARGCOMPLETE" in code
    assert "fenhe" in code


def test_open_quotation_is_split_somehow() -> None:
    assert words_of("fenhe chat 'a b'") == ["fenhe", "chat", "a b"]
    assert words_of("fenhe chat 'a b") == ["fenhe", "chat", "'a", "b"]
