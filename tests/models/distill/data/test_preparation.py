"""From files to examples and held-out rows: what is answered, what is kept apart, how much of each task is taken."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from models.distill.data.labels import LabelSettings
from models.distill.data.preparation import DataSettings, Prepared, clean, prepare
from models.distill.data.rows import read_rows
from models.distill.work_folder import WorkFolder
from models.errors import ConfigError
from models.sources.source import open_source
from models.tokenizer import Tokenizer

END = 2


class Parrot:
    """Answers every prompt with its own fifth to tenth token, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, ...]] = []

    def answer(
        self, prompts: Sequence[tuple[int, ...]], *, max_tokens: int, temperature: float, top_p: float, seed: int
    ) -> Iterator[tuple[int, tuple[int, ...]]]:
        self.asked += prompts
        for index, prompt in enumerate(prompts):
            yield index, (*prompt[5:11], END)


@pytest.fixture
def tokenizer(tiny_source: Callable[..., Path]) -> Tokenizer:
    return open_source(tiny_source("llama")).tokenizer()


def prompt(task: str, index: int) -> str:
    return f"{task} {index * 7919} {index**3} {index * index + 17}"


def write(folder: Path, **counts: int) -> str:
    """`math=5` answered rows of a task, `open_math=5` rows without an answer."""
    rows = []
    for name, count in counts.items():
        task = name.removeprefix("open_")
        answered = {} if name.startswith("open_") else {"answer": "a lazy dog"}
        rows += [{"task": task, "prompt": prompt(name, index), **answered} for index in range(count)]
    folder.mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def prepared(tmp_path: Path, tokenizer: Tokenizer, parrot: Parrot | None = None, **settings: Any) -> Prepared:
    data = DataSettings(files=(str(tmp_path / "data"),), **settings)
    return prepare(
        clean(data, 0),
        data,
        LabelSettings(),
        tokenizer,
        parrot or Parrot(),
        WorkFolder(path=tmp_path),
        teacher="parrot",
        teacher_tokenizer=tokenizer,
        seed=0,
    )


def tasks(found: Prepared) -> dict[str, int]:
    return dict(Counter(example.task for example in found.examples))


def test_rows_without_an_answer_get_the_teachers_on_both_sides(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write(tmp_path / "data", math=20, open_fact=20)
    parrot = Parrot()
    found = prepared(tmp_path, tokenizer, parrot, heldout_share=0.3)
    assert len(parrot.asked) == 20
    assert len(found.examples) + len(found.held_out) == 40
    answers = {row.prompt: row.answer for row in found.held_out}
    own = {text for text in answers if text.startswith("math")}
    assert own
    assert own != set(answers)
    assert all((answers[text] == "a lazy dog") == (text in own) for text in answers)
    assert all(answers.values())


def test_held_out_rows_are_never_trained_on_and_are_kept_in_a_file(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write(tmp_path / "data", math=20, open_fact=20)
    found = prepared(tmp_path, tokenizer, heldout_share=0.3)
    trained = [tokenizer.decode(list(example.token_ids)) for example in found.examples]
    assert not any(row.prompt in text for row in found.held_out for text in trained)
    kept = read_rows([tmp_path / "heldout.jsonl"])
    assert [(row.task, row.prompt, row.answer) for row in kept] == [
        (row.task, row.prompt, row.answer) for row in found.held_out
    ]


def test_a_second_run_asks_nothing_and_prepares_the_same(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write(tmp_path / "data", open_math=12)
    first, again = prepared(tmp_path, tokenizer), Parrot()
    second = prepared(tmp_path, tokenizer, again)
    assert not again.asked
    assert (second.examples, second.held_out) == (first.examples, first.held_out)


def test_a_task_keeps_its_rows_beside_general_ones(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write(tmp_path / "data", math=8, fact=8, general=8)
    assert tasks(prepared(tmp_path, tokenizer, task="fact", heldout_share=0.0)) == {"fact": 8, "general": 8}


def test_budgets_bound_their_tasks_and_the_whole(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write(tmp_path / "data", math=30, fact=30, general=30)
    whole = prepared(tmp_path, tokenizer, heldout_share=0.0)
    longest = max(example.num_tokens for example in whole.examples)

    def size(found: Prepared, task: str | None = None) -> int:
        return sum(example.num_tokens for example in found.examples if task in (None, example.task))

    few = prepared(tmp_path, tokenizer, heldout_share=0.0, task_tokens={"math": 200})
    assert 200 - longest < size(few, "math") <= 200
    assert size(few, "fact") == size(whole, "fact")
    bounded = prepared(tmp_path, tokenizer, heldout_share=0.0, max_train_tokens=600)
    # A third each: general text counts as one more task, and keeps its name.
    for task in ("math", "fact", "general"):
        assert 200 - longest < size(bounded, task) <= 200
    shared = prepared(tmp_path, tokenizer, heldout_share=0.0, max_train_tokens=600, task_share=0.7)
    assert 180 - longest < size(shared, "general") <= 180
    assert 210 - longest < size(shared, "math") <= 210


def test_what_is_beyond_the_length_is_counted_as_dropped(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write(tmp_path / "data", math=4)
    with (tmp_path / "data" / "rows.jsonl").open("a") as file:
        file.write(json.dumps({"task": "fact", "prompt": "a long question " * 20, "answer": "fox"}) + "\n")
    found = prepared(tmp_path, tokenizer, heldout_share=0.0, max_tokens=64)
    assert tasks(found) == {"math": 4}
    assert "answer beyond 64 tokens" in found.report.text()


def test_nothing_to_train_on_is_an_error_that_names_the_files(tmp_path: Path) -> None:
    data = write(tmp_path / "data", math=1)
    with (tmp_path / "data" / "rows.jsonl").open("w") as file:
        file.write(json.dumps({"task": "math", "prompt": " "}) + "\n")
    with pytest.raises(ConfigError, match=r"no training rows are left in .*data"):
        clean(DataSettings(files=(data,)), 0)


def test_a_task_that_no_row_has_is_named_even_where_there_are_general_rows(tmp_path: Path) -> None:
    data = write(tmp_path / "data", math=4, general=4)
    with pytest.raises(ConfigError, match=r"no training rows are of task 'maths' in .*data; there is general, math"):
        clean(DataSettings(files=(data,), task="maths"), 0)
    with pytest.raises(ConfigError, match=r"task_tokens: no training row is of task maths; there is general, math"):
        clean(DataSettings(files=(data,), task_tokens={"maths": 9, "math": 9}), 0)


def test_a_budget_may_name_a_known_task_without_rows(tmp_path: Path) -> None:
    data = write(tmp_path / "data", math=4)
    assert clean(DataSettings(files=(data,), task_tokens={"legal": 9, "general": 0}), 0).training


def test_near_copies_of_evaluation_rows_are_dropped_from_single_files_too(tmp_path: Path) -> None:
    data = write(tmp_path / "data", math=20)
    rows = (tmp_path / "data" / "rows.jsonl").read_text().splitlines()
    (tmp_path / "data" / "eval_math.jsonl").write_text(rows[3] + "\n")
    (tmp_path / "elsewhere.jsonl").write_text(rows[5] + "\n")
    beside = DataSettings(files=(f"{data}/rows.jsonl",), heldout_share=0.0)
    named = DataSettings(files=(data,), heldout_share=0.0, evaluation=(str(tmp_path / "elsewhere.jsonl"),))
    for settings, gone in ((beside, {3}), (named, {3, 5})):
        left = {row.prompt for row in clean(settings, 0).training}
        assert {index for index in range(20) if prompt("math", index) not in left} == gone


def test_rows_that_the_teacher_answers_are_counted(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write(tmp_path / "data", math=4, open_fact=6)
    assert prepared(tmp_path, tokenizer, heldout_share=0.0).num_by_teacher == 6


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"files": ()}, "names no training file"),
        ({"task_share": 1.0}, "task_share must be from 0 to below 1"),
        ({"heldout_share": -0.1}, "heldout_share"),
        ({"max_tokens": 15}, "at least 16"),
        ({"max_train_tokens": 0}, "at least 1"),
    ],
)
def test_wrong_settings_are_named(values: dict[str, Any], words: str) -> None:
    (problem,) = DataSettings(**{"files": ("rows",), **values}).problems()
    assert words in problem
