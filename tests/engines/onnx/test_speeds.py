"""Speeds are measured once per machine, kept beside the student, and announced when it takes time."""

import logging
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engines.onnx import speeds
from models.student.folder import Student
from models.student.speeds import SPEEDS_NAME, SpeedFile, Speeds
from tests.engines.onnx.test_precision_choice import MEASURED, speed


def test_speeds_are_measured_once_per_machine_and_kept(
    tiny_student: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []

    def measure(student: Student, variant: str, num_threads: int, library: Path | None) -> Speeds:
        measured.append(variant)
        return MEASURED[variant]

    monkeypatch.setattr(speeds, "_measure", measure)
    original = tiny_student("llama").student
    student = Student(folder=tmp_path, manifest=original.manifest, tokenizer=original.tokenizer)
    for _ in range(2):
        found = speeds.speeds_of(student, ["int8", "w8a8"], 2, None)
        assert found == {"int8": MEASURED["int8"], "w8a8": MEASURED["w8a8"]}
    assert measured == ["int8", "w8a8"]
    assert speeds.speeds_of(student, ["fp32"], 2, None) == {"fp32": MEASURED["fp32"]}
    assert len(speeds.speeds_of(student, ["int8"], 1, None)) == 1
    assert measured == ["int8", "w8a8", "fp32", "int8"]


def test_speeds_that_are_measured_are_announced_and_those_that_are_kept_are_not(
    tiny_student: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    announced: list[int] = []

    def measure(*_: object) -> Speeds:
        announced.append(len(caplog.records))
        return MEASURED["int8"]

    monkeypatch.setattr(speeds, "_measure", measure)
    original = tiny_student("llama").student
    student = Student(folder=tmp_path, manifest=original.manifest, tokenizer=original.tokenizer)
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            speeds.speeds_of(student, ["int8", "w8a8"], 2, None)
    assert announced == [1, 1]
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "int8,w8a8: once on this machine" in caplog.text


DAMAGES = {
    "cut": ("{", ""),
    "nested": ("{", "[" * 100_000),
    "zero": ('"prefill_token_s": 0.001', '"prefill_token_s": 0.0'),
    "negative": ('"1": 0.01', '"1": -0.01'),
    "infinite": ('"1": 0.01', '"1": 1e999'),
    "other rows": ('"32":', '"33":'),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_speeds_of_a_damaged_file_are_measured_again(
    tiny_student: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: tuple[str, str]
) -> None:
    original = tiny_student("llama").student
    student = Student(folder=tmp_path, manifest=original.manifest, tokenizer=original.tokenizer)
    measured: list[str] = []

    def measure(student: Student, variant: str, num_threads: int, library: Path | None) -> Speeds:
        measured.append(variant)
        return MEASURED[variant]

    monkeypatch.setattr(speeds, "_measure", measure)
    speeds.speeds_of(student, ["fp32"], 2, None)
    file = tmp_path / SPEEDS_NAME
    damaged = file.read_text().replace(*damage, 1)
    assert damaged != file.read_text()
    file.write_text(damaged)
    assert speeds.speeds_of(student, ["fp32"], 2, None) == {"fp32": MEASURED["fp32"]}
    assert measured == ["fp32", "fp32"]


def test_speeds_where_nothing_can_be_written_are_still_given(
    tiny_student: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(folder: Path, found: SpeedFile) -> None:
        raise OSError("read-only")

    monkeypatch.setattr(speeds, "write_speeds", refuse)
    monkeypatch.setattr(speeds, "_measure", lambda *_: MEASURED["fp32"])
    monkeypatch.setattr(speeds, "read_speeds", lambda folder: None)
    assert speeds.speeds_of(tiny_student("llama").student, ["fp32"], 1, None) == {"fp32": MEASURED["fp32"]}
    assert "read-only" in caplog.text


def test_speeds_nearest_measured_row_count_counts() -> None:
    assert speed(0.01, 0.02, 0.32).decode_token_s(30) == pytest.approx(0.01)
    assert speed(0.01, 0.02, 0.32).decode_token_s(5) == pytest.approx(0.005)


def test_speeds_measured_before_there_was_a_cheap_head_are_measured_again(
    tiny_student: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = {1: 0.001, 8: 0.001, 32: 0.001}
    answers = [MEASURED["w8a8"], msgspec.structs.replace(MEASURED["w8a8"], exact_head_s=heads, cheap_head_s=heads)]
    measured: list[str] = []

    def measure(student: Student, variant: str, num_threads: int, library: Path | None) -> Speeds:
        measured.append(variant)
        return answers[len(measured) - 1]

    monkeypatch.setattr(speeds, "_measure", measure)
    original = tiny_student("llama").student
    name = original.manifest.variants[0].name
    student = Student(folder=tmp_path, manifest=original.manifest, tokenizer=original.tokenizer)
    assert speeds.speeds_of(student, [name], 2, None)[name].cheap_head_s == {}
    variants = tuple(msgspec.structs.replace(one, cheap_head="c.onnx") for one in original.manifest.variants)
    manifest = msgspec.structs.replace(original.manifest, variants=variants)
    student = Student(folder=tmp_path, manifest=manifest, tokenizer=original.tokenizer)
    for _ in range(2):
        assert speeds.speeds_of(student, [name], 2, None)[name].cheap_head_s == heads
    assert measured == [name, name]
