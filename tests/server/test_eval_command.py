"""`fenhe eval` from the command line to the manifest."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from models.build import build_student
from models.manifest import read_manifest
from server.cli import main

FIELDS = {
    "path",
    "precision",
    "layers",
    "compute_share",
    "agreement",
    "kl",
    "perplexity_ratio",
    "retention",
    "bytes",
    "decode_tokens_per_s",
}


@pytest.fixture
def student(tiny_source: Callable[..., Path], tmp_path: Path) -> Path:
    folder = tmp_path / "student"
    build_student(tiny_source("llama", vocab_size=320), folder, modules="first:2,last:2", precisions=("fp32",))
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [{"task": "fact", "prompt": "who?", "answer": "fox", "choices": ["dog", "fox"]}] * 3
    (folder / "eval_trivia.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "held.jsonl").write_text('{"task": "legal", "prompt": "why?", "answer": "the lazy dog"}\n')
    return folder


def run(student: Path, data: Path, *more: str) -> int:
    return main(["eval", str(student), "--data", str(data), "--threads", "1", *more])


def test_figures_go_to_the_manifest_the_json_and_the_page(
    student: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, page = tmp_path / "out.json", tmp_path / "out.html"
    heldout = ("--heldout", str(data / "held.jsonl"))
    assert run(student, data, *heldout, "--limit", "2", "--json", str(out), "--html", str(page)) == 0
    found = json.loads(out.read_text())
    assert found["num_rows"] == {"trivia": 2, "heldout": 1}
    assert [point["path"] for point in found["points"]] == ["first", "full"]
    for point in found["points"]:
        assert set(point) >= FIELDS
    manifest = read_manifest(student)
    kept = manifest.find_retention("first", "legal", "fp32")
    assert kept is not None
    assert kept.score == found["points"][0]["retention"]["legal"]["score"]
    assert manifest.find_retention("full", "legal", "fp32") is not None
    assert {quality.text for quality in manifest.quality} == {"trivia answers", "heldout answers"}
    assert "first" in page.read_text()
    assert "interactive" in capsys.readouterr().out


def test_no_write_leaves_the_manifest(student: Path, data: Path) -> None:
    before = (student / "manifest.json").read_bytes()
    assert run(student, data, "--no-write", "--paths", "first") == 0
    assert (student / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--limit", "0"], "--limit"),
        (["--paths", "deep"], "deep"),
        (["--precision", "int4"], "int4"),
        (["--json", "/nowhere/out.json"], "--json"),
        (["--steps", "/nowhere/steps.jsonl"], "steps.jsonl"),
    ],
)
def test_mistakes_are_one_line(
    student: Path, data: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(student, data, *arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_without_rows_it_says_how_to_name_them(student: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(student)]) == 2
    assert "--data" in capsys.readouterr().err
