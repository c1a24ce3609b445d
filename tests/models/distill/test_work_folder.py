"""The names of a run's files: a folder of an earlier version must still be found."""

from pathlib import Path

import pytest

from models.distill.config import DistillConfig
from models.distill.work_folder import WorkFolder

NAMES = {
    "teacher_prompts": "teacher_prompts.jsonl",
    "teacher_answers": "teacher_answers.jsonl",
    "held_out_rows": "heldout.jsonl",
    "teacher_caches": "cache",
    "boundary_picture": "boundaries.svg",
    "checkpoints": "checkpoints",
    "log": "log.jsonl",
    "exits": "exits.safetensors",
    "widths": "widths.safetensors",
    "evaluation": "evaluation.json",
    "evaluated_exits": "evaluation.exits",
    "report": "report.html",
    "ablation": "ablation.md",
}


@pytest.mark.parametrize("name", sorted(NAMES))
def test_work_folder_keeps_the_names_that_runs_on_disk_have(name: str) -> None:
    assert getattr(WorkFolder(path=Path("w")), name) == Path("w") / NAMES[name]


def test_work_folder_names_every_file_once() -> None:
    properties = {name for name, value in vars(WorkFolder).items() if isinstance(value, property)}
    assert properties == NAMES.keys() | {"branches"}
    assert len(set(NAMES.values())) == len(NAMES)


def test_work_folder_keeps_an_analysis_for_every_key() -> None:
    work = WorkFolder(path=Path("w"))
    assert work.layer_analysis("a1") == Path("w/boundaries-a1.json")
    assert work.layer_analysis("a1") != work.layer_analysis("b2")


def test_work_folder_of_branches_is_a_folder_of_its_own() -> None:
    work = WorkFolder(path=Path("w"))
    assert work.branches == WorkFolder(path=Path("w/branches"))
    assert work.branches.checkpoints != work.checkpoints


@pytest.mark.parametrize(("work", "expected"), [(None, "student.work"), ("elsewhere", "elsewhere")])
def test_config_puts_the_work_folder_beside_the_student_unless_told(work: str | None, expected: str) -> None:
    assert DistillConfig(teacher="t", data="d", out="student", work=work).work_folder.path == Path(expected)
