"""`fenhe bench head` on a tiny student whose cheap head is wrong for most tokens in a known way."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from bench.engines.head import FORMULAS, ROW_COUNTS, read_options, run
from models.building.build import build_student
from models.errors import ConfigError
from models.student.folder import Student
from tests.engines.cheap_heads import with_cheap_head


@pytest.fixture
def plain(tmp_path: Path, tiny_source: object) -> Student:
    assert callable(tiny_source)
    build_student(tiny_source("llama"), tmp_path / "plain", modules="first:2,second:2", precisions=("fp32",))
    return Student.open(tmp_path / "plain")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    file = tmp_path / "texts.jsonl"
    file.write_bytes(b'{"prompt": "hello", "answer": "a b c d e f g h"}\n{"text": "one two three four five"}\n')
    return file


def test_every_figure_is_there_and_has_its_formula(
    tmp_path: Path, plain: Student, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student, out = with_cheap_head(plain, tmp_path / "student"), tmp_path / "figures.json"
    arguments = ["--student", str(student.folder), "--texts", str(texts), "--rounds", "1", "--threads", "1"]
    assert run([*arguments, "--json", str(out)]) == 0
    figures = msgspec.json.decode(out.read_bytes())["figures"]
    steps = {f"step_ms.full.{rows}.{head}" for rows in ROW_COUNTS for head in ("exact", "cheap")}
    assert figures.keys() == steps | {f"speedup.full.{rows}" for rows in ROW_COUNTS} | {"same_token.full"}
    assert {name.split(".")[0] for name in figures} == {formula.split(".")[0] for formula in FORMULAS}
    # Errors of about 1 change some of the likeliest tokens; how many, the random weights of this machine decide.
    assert 0.0 <= figures["same_token.full"] < 1.0
    exact, cheap = figures["step_ms.full.8.exact"], figures["step_ms.full.8.cheap"]
    assert figures["speedup.full.8"] == pytest.approx(exact / cheap, rel=1e-3)
    assert "of 2 texts; 1 rounds" in capsys.readouterr().out


def test_heads_that_agree_choose_the_same_tokens(
    tmp_path: Path, plain: Student, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.engines.cheap_heads.errors", lambda vocab_size: np.zeros(vocab_size, np.float32))
    student, out = with_cheap_head(plain, tmp_path / "student"), tmp_path / "figures.json"
    arguments = ["--student", str(student.folder), "--texts", str(texts), "--rounds", "1", "--threads", "1"]
    assert run([*arguments, "--json", str(out)]) == 0
    assert msgspec.json.decode(out.read_bytes())["figures"]["same_token.full"] == 1.0


def test_a_student_without_a_cheap_head_is_refused(plain: Student, texts: Path) -> None:
    with pytest.raises(ConfigError, match="has none at precision 'fp32'"):
        run(["--student", str(plain.folder), "--texts", str(texts), "--rounds", "1"])


def test_texts_without_tokens_to_count_on_are_refused(tmp_path: Path, plain: Student, texts: Path) -> None:
    texts.write_bytes(b'{"prompt": "%s", "answer": "b"}\n' % (b"hello " * 2000))
    student = with_cheap_head(plain, tmp_path / "student")
    with pytest.raises(ConfigError, match="no text with a token to predict within 128 tokens"):
        run(["--student", str(student.folder), "--texts", str(texts), "--rounds", "1", "--threads", "1"])


def test_mistakes_are_told_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_options(["--texts", "x", "--rows", "0", "--rounds", "0", "--json", str(tmp_path / "nowhere" / "out.json")])
    for part in ("--rows", "--rounds", "nowhere"):
        assert part in caught.value.message
