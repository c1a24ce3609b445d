"""Own words and own answers: written once, kept in files, the same whatever else is asked."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engines.evaluation.choices import EvalConfig
from engines.evaluation.writing import Writer, Written, prompts_to_answer, spread_by_task, written_passage
from models.evaluation.rows import OWN_WORDS, Row
from models.evaluation.scores import PathHead
from models.evaluation.texts import Prompt

PROMPTS = [Prompt(task=task, prompt=f"{task} fox {n}") for task in ("legal", "math") for n in range(4)]
FULL, SHALLOW = PathHead("full", "exact"), PathHead("knowledge", "exact")


@pytest.fixture
def student(tiny_student: Callable[..., Any]) -> Any:
    return tiny_student("llama").student


def config(folder: Path, **settings: Any) -> EvalConfig:
    settings |= {"own_words_file": folder / "own.jsonl", "answers_file": folder / "answers.jsonl"}
    return EvalConfig(num_threads=1, num_own_prompts=2, max_text_tokens=64, **settings)


def test_own_words_are_read_from_their_file_the_second_time(
    student: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Writer(student, "fp32", config(tmp_path)) as writer:
        rows = writer.own_words(PROMPTS)
    assert {row.dataset for row in rows} == {OWN_WORDS}
    assert {row.prompt for row in rows} <= {"legal fox 0", "legal fox 2", "math fox 0", "math fox 2"}
    lines = [json.loads(line) for line in (tmp_path / "own.jsonl").read_text().splitlines()]
    answers = {(line["task"], line["prompt"], line["answer"]) for line in lines if line["answer"]}
    assert answers == {(row.task, row.prompt, row.answer) for row in rows}
    monkeypatch.setattr("engines.evaluation.writing.build_engine", None)
    with Writer(student, "fp32", config(tmp_path)) as writer:
        assert writer.own_words(PROMPTS) == rows


def test_answers_depend_on_the_path_and_on_nothing_that_is_asked_besides(student: Any, tmp_path: Path) -> None:
    with Writer(student, "fp32", config(tmp_path)) as writer:
        full, shallow = writer.answers(PROMPTS, FULL), writer.answers(PROMPTS, SHALLOW)
    assert full != shallow
    (tmp_path / "again").mkdir()
    with Writer(student, "fp32", config(tmp_path / "again")) as writer:
        alone = [one for prompt in PROMPTS[:2] for one in writer.answers([prompt], SHALLOW)]
    assert alone == [one for one in shallow if one.prompt in {prompt.prompt for prompt in PROMPTS[:2]}]


def test_without_files_nothing_is_left_behind(student: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Writer(student, "fp32", EvalConfig(num_threads=1, num_own_prompts=1, max_text_tokens=64)) as writer:
        writer.own_words(PROMPTS)
    assert list(tmp_path.iterdir()) == []


def test_prompts_are_spread_over_every_task_and_named_once() -> None:
    prompts = [Prompt(task="a", prompt=str(n // 2)) for n in range(12)] + [Prompt(task="b", prompt="x")]
    assert [(one.task, one.prompt) for one in spread_by_task(prompts, 3)] == [
        ("a", "0"),
        ("a", "2"),
        ("a", "4"),
        ("b", "x"),
    ]


def test_the_prompts_of_own_words_are_answered() -> None:
    rows = [Row(dataset=dataset, task="a", prompt=dataset, answer="x") for dataset in ("gsm8k", OWN_WORDS)]
    assert prompts_to_answer(rows, 5) == [Prompt(task="a", prompt=OWN_WORDS)]
    assert prompts_to_answer(rows, 0) == []


def test_a_complete_answer_ends_with_the_end_token(student: Any) -> None:
    whole, cut = (
        written_passage(Written(task="a", prompt="p", answer="the fox", is_complete=is_complete), student.tokenizer, 64)
        for is_complete in (True, False)
    )
    assert whole is not None
    assert cut is not None
    assert whole.token_ids[:-1] == cut.token_ids
    assert whole.token_ids[-1] in student.tokenizer.eos_token_ids
    assert whole.boundary == cut.boundary
