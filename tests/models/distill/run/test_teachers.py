"""The teachers of a run: which are further ones, which one writes answers, and what is read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from models.distill.config import DistillConfig, config_from
from models.distill.run.teachers import Teachers
from tests.models.distill.tiny_teacher import examples_of

MakeSource = Callable[..., Path]
TEXT = [{"name": "text", "share": 1.0, "weights": {"task_cross_entropy": 1.0}}]


def config_of(teacher: Path, folder: Path, **values: Any) -> DistillConfig:
    return config_from({"teacher": str(teacher), "data": "b", "out": str(folder / "out"), **values}, "test")


def quiet(done: int, total: int) -> None:
    """Reports nothing."""


def test_further_teachers_are_known_by_their_place(tiny_source: MakeSource, tmp_path: Path) -> None:
    other = tiny_source("qwen2")
    teachers = Teachers(config_of(tiny_source("llama"), tmp_path, teachers=[str(other)]), quiet)
    assert {name: source.files[0].parent for name, source in teachers.further_sources.items()} == {"teachers[0]": other}
    assert teachers.writer() is teachers.source


def test_the_other_teacher_writes_where_its_text_is_all_that_is_learned(
    tiny_source: MakeSource, tmp_path: Path
) -> None:
    other = tiny_source("qwen2")
    config = config_of(tiny_source("llama"), tmp_path, teachers=[str(other)], transfer="sequence", stages=TEXT)
    teachers = Teachers(config, quiet)
    assert teachers.further_sources == {}
    assert teachers.writer().files[0].parent == other


def test_own_reads_the_examples_once_and_keeps_them(tiny_source: MakeSource, tmp_path: Path) -> None:
    examples, config = examples_of(9, 14, 6), config_of(tiny_source("llama"), tmp_path)
    seen: list[tuple[int, int]] = []
    first = Teachers(config, lambda done, total: seen.append((done, total))).own(examples, (2,))
    assert seen[-1] == (29, 29)
    assert first.cache.states.keys() == {2, first.trunk.architecture.num_layers}
    assert config.work_folder.teacher_caches.is_dir()
    seen.clear()
    Teachers(config, lambda done, total: seen.append((done, total))).own(examples, (2,))
    assert seen == [(29, 29)]


def test_further_teachers_read_the_same_examples(tiny_source: MakeSource, tmp_path: Path) -> None:
    config = config_of(tiny_source("llama"), tmp_path, teachers=[str(tiny_source("qwen2"))])
    further = Teachers(config, quiet).further(examples_of(9, 14, 6))
    assert [len(teacher.cache.entropy) for teacher in further.values()] == [29]
