"""Reading training rows and filtering them."""

import logging
import random
import string
from pathlib import Path

import pytest

from models.distill.data.rows import FilterLimits, Row, evaluation_files, filter_rows, read_prompts, read_rows
from models.errors import ConfigError

GOOD = '{"task": "math", "prompt": "1 + 1?", "answer": "2", "source": "GSM8K", "licence": "MIT", "choices": ["2"]}\n'


def row(prompt: str, answer: str | None = None, task: str = "math") -> Row:
    return Row(task=task, prompt=prompt, answer=answer, source="test")


def test_read_rows_takes_what_training_needs_and_ignores_other_keys(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(GOOD)
    assert read_rows([tmp_path / "rows.jsonl"]) == [
        Row(task="math", prompt="1 + 1?", answer="2", source="GSM8K", licence="MIT", is_complete=True)
    ]


def test_read_rows_names_the_file_as_source_where_the_row_names_none(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text('\ufeff{"task": "legal", "prompt": "p"}\n\n')
    assert read_rows([tmp_path / "mine.jsonl"]) == [Row(task="legal", prompt="p", source="mine.jsonl")]


def test_read_rows_skips_the_evaluation_files_of_a_folder_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("b.jsonl", "a.jsonl", "eval_x.jsonl", "notes.txt"):
        (tmp_path / name).write_text(GOOD.replace("1 + 1?", name))
    with caplog.at_level(logging.INFO):
        prompts = [read.prompt for read in read_rows([tmp_path])]
    assert prompts == ["a.jsonl", "b.jsonl"]
    assert [record.args for record in caplog.records] == [(tmp_path, "eval_x.jsonl")]


def test_read_rows_skips_plain_text_in_a_folder_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.jsonl").write_text(GOOD)
    (tmp_path / "plain.jsonl").write_text('\n{"task": "fact", "text": "human prose"}\n')
    with caplog.at_level(logging.INFO):
        assert len(read_rows([tmp_path])) == 1
    assert [record.args for record in caplog.records] == [(tmp_path, "plain.jsonl")]
    with pytest.raises(ConfigError, match=r"plain\.jsonl line 2"):
        read_rows([tmp_path / "plain.jsonl"])


def test_read_rows_refuses_an_evaluation_file_by_name(tmp_path: Path) -> None:
    (tmp_path / "eval_x.jsonl").write_text(GOOD)
    with pytest.raises(ConfigError, match=r"eval_x\.jsonl is for evaluation"):
        read_rows([tmp_path / "eval_x.jsonl"])


def test_read_rows_refuses_a_folder_with_nothing_to_train_on(tmp_path: Path) -> None:
    (tmp_path / "eval_x.jsonl").write_text(GOOD)
    with pytest.raises(ConfigError, match="no \\*\\.jsonl file to train on"):
        read_rows([tmp_path])


def test_read_rows_refuses_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.jsonl does not exist"):
        read_rows([tmp_path / "gone.jsonl"])


@pytest.mark.parametrize(
    "line",
    [
        b'{"task": "math"}',
        b'{"task": "math", "prompt": 7}',
        b'{"task": "math", "prom',
        b"[]",
        b'{"task": "math", "prompt": "\xff"}',
    ],
)
def test_read_rows_names_file_and_line_of_a_damaged_row(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "rows.jsonl").write_bytes(GOOD.encode() + line + b"\n")
    with pytest.raises(ConfigError, match=r"rows\.jsonl line 2: .*fix or delete the line"):
        read_rows([tmp_path / "rows.jsonl"])


@pytest.mark.parametrize("places", [["."], ["train.jsonl"], [".", "train.jsonl"]])
def test_evaluation_prompts_come_from_evaluation_files_only(tmp_path: Path, places: list[str]) -> None:
    (tmp_path / "train.jsonl").write_text(GOOD)
    (tmp_path / "eval_x.jsonl").write_text(GOOD.replace("1 + 1?", "held"))
    assert read_prompts(evaluation_files([tmp_path / place for place in places])) == ["held"]


def test_evaluation_files_of_plain_text_and_pairs_have_no_prompts(tmp_path: Path) -> None:
    lines = ('{"task": "a", "text": "t"}', '\n{"set": "s", "good": "g", "bad": "b"}', '{"task": "a", "prompt": "p"}')
    files = [tmp_path / f"eval_{number}.jsonl" for number in range(4)]
    for file, line in zip(files, (*lines, '{"task": "a"}'), strict=True):
        file.write_text(line + "\n")
    assert read_prompts(files[:3]) == ["p"]
    with pytest.raises(ConfigError, match="eval_3"):
        read_prompts(files)


def test_evaluation_files_may_lie_elsewhere_under_any_name(tmp_path: Path) -> None:
    for name in ("here/train", "there/eval_b", "there/train", "other/test"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.jsonl").write_text(GOOD)
    named = [tmp_path / "there", tmp_path / "other" / "test.jsonl", tmp_path / "there" / "eval_b.jsonl"]
    found = evaluation_files([tmp_path / "here"], named)
    assert [file.name for file in found] == ["eval_b.jsonl", "test.jsonl"]


@pytest.mark.parametrize("place", ["gone.jsonl", "."])
def test_an_evaluation_place_without_files_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "train.jsonl").write_text(GOOD)
    with pytest.raises(ConfigError, match=rf"text\.evaluation: {tmp_path / place} is neither a file"):
        evaluation_files([tmp_path], [tmp_path / place])


def noise(num_chars: int) -> str:
    return "".join(random.Random(3).choices(string.ascii_letters, k=num_chars))


@pytest.mark.parametrize(
    ("prompt", "answer", "reason"),
    [
        (" \n", None, "empty prompt"),
        ("why?", "  ", "empty answer"),
        ("x" * 4001, None, "prompt too long"),
        ("why?", noise(8001), "answer too long"),
        ("why\x92s that?", None, "damaged characters"),
        ("why\x00?", None, "damaged characters"),
        ("why?", "be\ufffdcause", "damaged characters"),
        ("Because.", " because. ", "answer equals prompt"),
        ("why?", "because it is so, " * 30, "repetitive answer"),
    ],
)
def test_filter_rows_counts_a_bad_row_under_its_reason(prompt: str, answer: str | None, reason: str) -> None:
    assert filter_rows([row(prompt, answer)]) == ([], {("math", reason): 1})


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("a\tb\r\nc", "d\ne"),
        ("x" * 4000, None),
        ("why?", noise(8000)),
        ("分合？", "是。"),
        ("say it", "no no no no no no"),
        ("\U0001f600?", "\u200d\u00a0ok"),
    ],
)
def test_filter_rows_keeps_a_good_row(prompt: str, answer: str | None) -> None:
    assert filter_rows([row(prompt, answer)]) == ([row(prompt, answer)], {})


def test_filter_rows_counts_by_task_and_keeps_the_order() -> None:
    rows = [row("b"), row(""), row("a"), row("", task="legal"), row("", task="legal")]
    kept, dropped = filter_rows(rows)
    assert [one.prompt for one in kept] == ["b", "a"]
    assert dropped == {("math", "empty prompt"): 1, ("legal", "empty prompt"): 2}


@pytest.mark.parametrize(
    ("limits", "num_kept"), [(FilterLimits(max_prompt_chars=3), 0), (FilterLimits(max_prompt_chars=4), 1)]
)
def test_filter_rows_obeys_its_limits(limits: FilterLimits, num_kept: int) -> None:
    assert len(filter_rows([row(" why? ")], limits)[0]) == num_kept  # the blanks around it do not count


def test_filter_rows_drops_half_a_surrogate_pair() -> None:
    assert filter_rows([row("why?", "be\ud800cause")])[1] == {("math", "damaged characters"): 1}
