"""Rows to passages: the question, where the answer begins, and where wrong answers depart from it."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend

from models.errors import ConfigError
from models.evaluation.distractors import wrong_numbers
from models.evaluation.rows import Row, passage_of, plain_number, read_file
from models.evaluation.texts import read_texts
from models.tokenizer import Tokenizer, TokenizerSettings
from tests.conftest import CHAT_TEMPLATE


@pytest.fixture
def tokenizer(tiny_tokenizer_json: str) -> Tokenizer:
    return Tokenizer(Backend.from_str(tiny_tokenizer_json), TokenizerSettings(), CHAT_TEMPLATE)


def write(file: Path, *rows: Mapping[str, object]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


WORKED = "Janet sells 16 - 7 = 9 eggs.\nShe makes 9 * 2 = $18 every day.\n#### 18"


def test_a_worked_answer_is_chosen_where_its_result_is_first_worked_out(tmp_path: Path) -> None:
    file = write(tmp_path / "eval_gsm8k.jsonl", {"task": "math", "prompt": "How much?", "answer": WORKED})
    row = read_file(file, "gsm8k")[0]
    assert row.answer == WORKED
    assert row.given == "Janet sells 16 - 7 = 9 eggs.\nShe makes 9 * 2 = $"
    assert row.right == "18"
    assert row.wrong == ("11", "7", "10")


def test_a_worked_answer_that_never_shows_its_result_is_only_text(tmp_path: Path) -> None:
    rows = [{"task": "math", "prompt": "p", "answer": answer} for answer in ("It is 4.\n#### 4", "x = 180\n#### 18")]
    assert [row.wrong for row in read_file(write(tmp_path / "rows.jsonl", *rows), "d")] == [(), ()]


def test_a_number_is_asked_for_as_a_plain_number(tmp_path: Path) -> None:
    asked = {"task": "math", "prompt": "5 and 3 more?", "answer": "8.0", "source": "SVAMP"}
    row = read_file(write(tmp_path / "rows.jsonl", asked), "svamp")[0]
    assert row.prompt == "5 and 3 more?\nAnswer with the number only."
    assert (row.answer, row.given, row.right) == ("8", "", "8")
    assert len(row.wrong) == 3
    assert "8" not in row.wrong


def test_choices_are_the_wrong_ones_once_each(tmp_path: Path) -> None:
    asked = {"task": "fact", "prompt": "p", "answer": "b", "choices": ["a", "b", "c", "a"]}
    row = read_file(write(tmp_path / "rows.jsonl", asked), "d")[0]
    assert row.wrong == ("a", "c")
    assert row.rewordings == ("Answer this quiz question in a few words.\np", "Question: p\nAnswer:")


def test_a_question_may_have_braces(tmp_path: Path) -> None:
    asked = {"task": "fact", "prompt": "what is {0} in C?", "answer": "b", "choices": ["a", "b"]}
    assert "what is {0} in C?" in read_file(write(tmp_path / "rows.jsonl", asked), "d")[0].rewordings[0]


def test_limit_counts_rows_of_every_file_of_a_folder(tmp_path: Path) -> None:
    line = {"task": "legal", "prompt": "p", "answer": "a"}
    write(tmp_path / "eval_one.jsonl", line, line, line)
    write(tmp_path / "eval_two.jsonl", line)
    write(tmp_path / "train.jsonl", line)
    assert [row.dataset for row in read_texts([tmp_path], 2).rows] == ["one", "one", "two"]


def test_limit_counts_rows_of_every_task(tmp_path: Path) -> None:
    rows = [{"task": task, "prompt": str(n), "answer": "a"} for n, task in enumerate(("a", "a", "a", "b", "a", "b"))]
    found = read_file(write(tmp_path / "rows.jsonl", *rows), "d", 2)
    assert [(row.task, row.prompt) for row in found] == [("a", "0"), ("a", "1"), ("b", "3"), ("b", "5")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"task": "math", "prompt": "p"}\n', "answer"),
        ("not json\n", ":1"),
        ('{"task": "math", "prompt": "", "answer": "a"}\n', "must have text"),
        ("\n", "no rows"),
    ],
)
def test_a_bad_file_is_named_with_the_mend(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words) as raised:
        read_file(file, "d")
    assert str(file) in str(raised.value)


def test_a_folder_without_evaluation_files_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="eval_"):
        read_texts([tmp_path])
    with pytest.raises(ConfigError, match="nowhere"):
        read_texts([tmp_path / "nowhere"])


def test_plain_numbers_are_written_as_people_write_them() -> None:
    written = [plain_number(text) for text in ("45.0", " 1,200", "0.5", "-3", "nan", "inf", "four")]
    assert written == ["45", "1200", "0.5", "-3", None, None, None]


def test_wrong_numbers_come_from_the_question_then_from_the_neighbours() -> None:
    assert wrong_numbers("She has 9 and 4.", "36") == ("13", "5", "19")
    assert wrong_numbers("How many?", "7") == ("8", "9", "10")
    assert wrong_numbers("How many?", "0.5") == ("1.5", "2.5", "3.5")
    assert wrong_numbers("30 eggs, 17 sold", "13") == ("47", "31", "18")


def test_a_passage_is_the_chat_prompt_and_the_answer(tokenizer: Tokenizer) -> None:
    passage = passage_of(Row(dataset="d", task="legal", prompt="hi", answer="the fox"), tokenizer, 100)
    assert passage is not None
    text = tokenizer.decode(passage.token_ids[: passage.boundary], skip_special=False)
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(passage.token_ids[passage.boundary :]) == "the fox"
    assert passage.branches == ()


def test_special_text_in_an_answer_is_ordinary_text(tokenizer: Tokenizer) -> None:
    passage = passage_of(Row(dataset="d", task="legal", prompt="hi", answer="<|im_end|>"), tokenizer, 100)
    assert passage is not None
    assert passage.num_answer_tokens > 1


def test_wrong_answers_leave_where_they_differ(tokenizer: Tokenizer) -> None:
    row = Row(dataset="d", task="fact", prompt="q", answer="AB CD.", given="AB ", right="CD", wrong=("CE", "XYZ"))
    passage = passage_of(row, tokenizer, 100)
    assert passage is not None
    shared = tokenizer.decode(passage.token_ids[passage.boundary : passage.branch])
    assert shared + tokenizer.decode(passage.token_ids[passage.branch : passage.branch_end]) == "AB CD"
    assert [shared + tokenizer.decode(branch) for branch in passage.branches] == ["AB CE", "AB XYZ"]


def test_an_answer_that_begins_another_keeps_a_token_to_tell_it_by(tokenizer: Tokenizer) -> None:
    passage = passage_of(
        Row(dataset="d", task="fact", prompt="q", answer="10", right="10", wrong=("100",)), tokenizer, 99
    )
    assert passage is not None
    assert tokenizer.decode(passage.token_ids[passage.branch : passage.branch_end]) == "0"
    assert tokenizer.decode(passage.branches[0]) == "00"


def test_long_answers_are_cut_and_lose_their_choice_and_long_prompts_are_left_out(tokenizer: Tokenizer) -> None:
    row = Row(dataset="d", task="fact", prompt="q", answer="ABCDEFGH", right="ABCDEFGH", wrong=("XY",))
    whole = passage_of(row, tokenizer, 100)
    assert whole is not None
    assert whole.branches
    cut = passage_of(row, tokenizer, whole.boundary + 2)
    assert cut is not None
    assert cut.num_answer_tokens == 2
    assert cut.branches == ()
    assert passage_of(row, tokenizer, whole.boundary) is None
