"""Which prompts the full path writes its words to."""

import json
from pathlib import Path

from engines.evaluation.prompts import prompts_of_files, prompts_of_rows
from models.distill.data.deduplicate import split_heldout
from models.distill.data.rows import Row as TrainingRow
from models.evaluation.rows import Row
from models.evaluation.texts import Prompt

WORDS = ("fox", "dog", "contract", "river", "court", "planet", "sonnet", "engine")


def write(file: Path) -> list[str]:
    prompts = [f"tell me what the {one} and the {two} have in common" for one in WORDS for two in WORDS[::2]]
    file.write_text("".join(json.dumps({"task": "legal", "prompt": prompt}) + "\n" for prompt in prompts))
    return prompts


def test_only_what_training_held_out_is_taken_and_evaluation_files_stay_whole(tmp_path: Path) -> None:
    for name in ("legal_prompts.jsonl", "eval_legal.jsonl"):
        prompts = write(tmp_path / name)
    rows = [TrainingRow(task="legal", prompt=prompt, source="") for prompt in prompts]
    expected = [row.prompt for row in split_heldout(rows, 0.3, 0).held_out]
    found = prompts_of_files([tmp_path / "legal_prompts.jsonl"], 0.3)
    assert [one.prompt for one in found] == expected
    assert len(expected) < len(prompts)
    assert [one.prompt for one in prompts_of_files([tmp_path / "eval_legal.jsonl"], 0.3)] == prompts
    assert [one.prompt for one in prompts_of_files([tmp_path / "legal_prompts.jsonl"], None)] == prompts


def test_rows_give_the_prompts_of_a_tasks_first_dataset() -> None:
    rows = [
        Row(dataset=dataset, task=task, prompt=prompt, answer="a")
        for dataset, task, prompt in (("gsm8k", "math", "1"), ("gsm8k", "math", "2"), ("svamp", "math", "3"))
    ]
    rows.append(Row(dataset="trivia", task="fact", prompt="4", answer="a"))
    assert prompts_of_rows(rows, frozenset({"fact"})) == [
        Prompt(task="math", prompt="1"),
        Prompt(task="math", prompt="2"),
    ]
