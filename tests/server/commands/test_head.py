"""`fenhe head`: from a model, a student and texts to a head file that a student can be built with."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engines.evaluation.final_states import model_states, paths_for, read_texts
from models.building.build import build_student
from models.building.head_file import read_head_file
from models.errors import ConfigError
from models.graphs.rotate import FINAL_NORM, rotation
from models.sources.source import open_source
from models.student.folder import Student
from server.commands.cli import main

ROWS = (
    b'{"task": "math", "prompt": "hello", "answer": "a b c d e f g h i j"}\n{"text": "one two three four five six"}\n'
)


@pytest.fixture
def source(tiny_source: Callable[..., Path]) -> Path:
    return tiny_source("llama")


@pytest.fixture
def folder(source: Path, tmp_path: Path) -> Path:
    build_student(source, tmp_path / "student", modules="first:2,second:2", precisions=("w8a8", "w8a8-native"))
    return tmp_path / "student"


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    file = tmp_path / "texts.jsonl"
    file.write_bytes(ROWS * 4)
    return file


def test_a_fitted_head_builds_into_a_student(
    source: Path, folder: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "head.safetensors"
    line = ["head", str(source), "--student", str(folder), "--data", str(texts), "--out", str(out)]
    assert main([*line, "--rank", "8", "--frequent", "20", "--candidates", "10", "--steps", "2"]) == 0
    assert f"fenhe build {source} --head {out}" in capsys.readouterr().out
    head = read_head_file(out)
    assert head.plan.training["data"] == ["texts.jsonl"]
    assert head.plan.training["positions"] > 20
    manifest = build_student(source, tmp_path / "with", precisions=("w8a8-native",), head=out)
    assert manifest.cheap_head is not None
    assert (manifest.cheap_head.rank, manifest.cheap_head.num_frequent) == (8, 20)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "texts.jsonl:1"),
        (b'{"prompt": "only"}', "texts.jsonl:1: a row needs a prompt and an answer, or a text"),
        (b"", "there is no text to fit to"),
    ],
)
def test_texts_that_cannot_be_read_are_named(
    source: Path,
    folder: Path,
    texts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: bytes,
    message: str,
) -> None:
    texts.write_bytes(content)
    line = ["head", str(source), "--student", str(folder), "--data", str(texts), "--out", str(tmp_path / "out")]
    assert main([*line, "--rank", "8", "--frequent", "20", "--candidates", "10"]) == 2
    assert message in capsys.readouterr().err


def test_sizes_and_students_that_do_not_fit_are_refused_before_work(
    source: Path, folder: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["head", str(source), "--student", str(folder), "--data", str(texts), "--out", str(tmp_path / "out")]
    assert main([*line, "--rank", "68", "--frequent", "20", "--candidates", "10"]) == 2
    assert "rank 68 is above the hidden size, 64" in capsys.readouterr().err
    assert main([*line[:-1], str(tmp_path / "nowhere" / "out"), "--positions", "0"]) == 2
    printed = capsys.readouterr().err
    assert "--positions must be at least 1, not 0" in printed
    assert "nowhere/out: name a file in a folder that exists" in printed


def test_states_of_a_rotated_student_are_turned_back(source: Path) -> None:
    model = open_source(source)
    unit = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)
    plain = unit * model.read(FINAL_NORM)
    np.testing.assert_allclose(model_states(unit @ rotation(64), model, is_rotated=True), plain, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(model_states(plain, model, is_rotated=False), plain)


def test_a_text_gives_states_of_the_paths_its_task_may_take(folder: Path) -> None:
    manifest = Student.open(folder).manifest
    assert paths_for(manifest, "") == ["full"]
    shallow = manifest.paths_by_depth[0].name
    manifest.tasks["math"] = shallow
    assert paths_for(manifest, "math") == [shallow, "full"]


def test_files_of_texts_take_turns(folder: Path, tmp_path: Path) -> None:
    tokenizer = Student.open(folder).tokenizer
    for name, count in (("many", 6), ("few", 1)):
        rows = b"".join(b'{"task": "%s", "prompt": "hello", "answer": "a b c"}\n' % name.encode() for _ in range(count))
        (tmp_path / name).write_bytes(rows)
    files = [tmp_path / "many", tmp_path / "few"]
    texts = read_texts(files, tokenizer, max_tokens=50, seed=0)
    assert [text.task for text in texts[:3]] == ["many", "few", "many"]
    assert len(texts) == 7
    with pytest.raises(ConfigError, match=r"none.jsonl cannot be read"):
        read_texts([tmp_path / "none.jsonl"], tokenizer, max_tokens=50, seed=0)
