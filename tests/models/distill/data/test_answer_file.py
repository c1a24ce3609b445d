"""The file of the teacher's answers: whole after a kill."""

from pathlib import Path

import pytest

from models.distill.data.answer_file import AnswerFile, Entry
from models.distill.data.rows import read_rows
from models.errors import ConfigError


def entry(key: str) -> Entry:
    return Entry(
        key=key, task="math", prompt=f"prompt {key}", answer="答案", is_complete=False, source="s", licence="MIT"
    )


def test_answer_file_keeps_what_was_appended(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "answers.jsonl"
    for keys in ("ab", "c"):
        with AnswerFile(path) as file:
            for key in keys:
                file.append(entry(key))
    with AnswerFile(path) as file:
        assert file.entries == {key: entry(key) for key in "abc"}


def test_answer_file_has_an_answer_on_disk_before_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with AnswerFile(path) as file:
        file.append(entry("a"))
        assert path.read_bytes().endswith(b"\n")


@pytest.mark.parametrize("num_lost_bytes", [1, 10, 60])
def test_answer_file_cuts_off_a_torn_last_line(tmp_path: Path, num_lost_bytes: int) -> None:
    path = tmp_path / "answers.jsonl"
    with AnswerFile(path) as file:
        file.append(entry("a"))
        file.append(entry("b"))
    path.write_bytes(path.read_bytes()[:-num_lost_bytes])
    with AnswerFile(path) as file:
        assert list(file.entries) == ["a"]
        file.append(entry("c"))
    with AnswerFile(path) as file:
        assert list(file.entries) == ["a", "c"]


def test_answer_file_names_a_damaged_line(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_bytes(b'{"key": \n{}\n')
    with pytest.raises(ConfigError, match=r"answers\.jsonl line 1 is damaged .*delete that line"):
        AnswerFile(path)
    assert path.read_bytes() == b'{"key": \n{}\n'


def test_answer_file_can_be_read_as_training_data(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with AnswerFile(path) as file:
        file.append(entry("a"))
    (row,) = read_rows([path])
    assert (row.prompt, row.answer, row.is_complete) == ("prompt a", "答案", False)
