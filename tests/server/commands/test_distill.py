"""`fenhe distill` from a short config to a student that is served, and its mistakes in one line."""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from engines.build import build_engine
from engines.config import EngineConfig
from models.distill.run import trainer as trainer_module
from models.student.folder import Student
from models.student.manifest import read_manifest, write_manifest
from server.commands.cli import main

REPOSITORY = Path(__file__).parents[3]
TEXT = "the quick brown fox jumps over the lazy dog and then the other foxes jump too"
WORDS = TEXT.split()
SMALL = """
modules = "knowledge:2,adapter:2"
precisions = ["fp32"]
[text]
max_tokens = 96
heldout_share = 0.1
[training]
epochs = 0.5
batch_tokens = 256
head_tokens = 64
checkpoint_s = 1e-9
"""

MakeConfig = Callable[..., Path]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def make_config(tiny_source: Callable[..., Path], tmp_path: Path) -> MakeConfig:
    """`make_config(more, **lines)` writes a run that takes a second; `lines` take the place of the three."""

    def make(more: str = SMALL, **lines: Any) -> Path:
        data = tmp_path / "data"
        data.mkdir(exist_ok=True)
        draw = random.Random(1)
        rows = [
            {"task": ("math", "fact")[n % 2], "prompt": " ".join(draw.choices(WORDS, k=8)), "answer": f"{n} foxes"}
            for n in range(64)
        ]
        (data / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        three = {"data": data, "out": tmp_path / "student"} | lines
        three.setdefault("teacher", None)
        three["teacher"] = three["teacher"] or tiny_source("llama")
        file = tmp_path / "run.toml"
        file.write_text("".join(f"{name} = {json.dumps(str(value))}\n" for name, value in three.items()) + more)
        return file

    return make


def distill(config: Path, *more: str) -> int:
    return main(["distill", str(config), *more])


def test_a_config_becomes_a_student_that_can_be_served(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert distill(make_config(), "--no-eval") == 0
    assert f"fenhe serve --student {tmp_path / 'student'}" in capsys.readouterr().out
    engine = build_engine(Student.open(tmp_path / "student"), EngineConfig(precision="fp32", num_threads=1))
    paths = [status.path for status in engine.status().paths]
    assert paths == ["knowledge", "full"]
    assert read_manifest(tmp_path / "student").tasks["math"] == "knowledge"


def test_boundaries_and_out_of_the_command_line_win(make_config: MakeConfig, tmp_path: Path) -> None:
    other = tmp_path / "other"
    assert distill(make_config(), "--no-eval", "--boundaries", "first:1,last:3", "--out", str(other)) == 0
    modules = read_manifest(other).modules
    assert [(module.name, module.num_layers) for module in modules] == [("first", 1), ("last", 3)]
    # What was computed stays where the config has it, so that another --out need not compute it again.
    assert (tmp_path / "student.work").is_dir()
    assert not (tmp_path / "other.work").exists()
    assert not (tmp_path / "student").exists()


def test_a_measured_student_is_picked_from_without_being_made_again(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config()
    assert distill(config, "--pick", "edge") == 0
    said = capsys.readouterr().out
    assert "edge: path " in said
    assert (tmp_path / "student.work" / "report.html").exists()
    assert {quality.path for quality in read_manifest(tmp_path / "student").quality} == {"knowledge", "full"}

    def step(_: object) -> None:
        raise AssertionError("it was trained again")

    monkeypatch.setattr(trainer_module.Trainer, "_step", step)
    assert distill(config, "--pick", "edge") == 0
    again = capsys.readouterr().out.splitlines()
    assert again == said.splitlines()[-len(again) :]
    assert "--precision fp32" in again[-1]


def test_figures_of_other_exits_are_not_picked_from(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config()
    assert distill(config, "--pick", "edge") == 0
    digest = tmp_path / "student.work" / "evaluation.exits"
    ours = digest.read_text()
    capsys.readouterr()
    for other in ("0" * 64, None):
        digest.unlink()
        if other is not None:
            digest.write_text(other)
        assert distill(config, "--pick", "edge") == 2
        assert "evaluation.json is not of" in error_line(capsys)
    assert distill(config, "--resume", "--pick", "edge") == 0
    assert digest.read_text() == ours


def test_a_run_killed_while_it_measured_goes_on_with_measuring(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config()

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("engines.evaluation.evaluate.evaluate", killed)
        assert distill(config) == 130
    assert distill(config) == 2
    assert "It has this run's exits: to measure it, go on with --resume" in error_line(capsys)
    other = make_config(SMALL + '[[exits]]\nafter = "knowledge"\nhas_map = false\n')
    assert distill(other, "--resume") == 2
    assert "belongs to a run with other exits" in error_line(capsys)
    monkeypatch.setattr(trainer_module.Trainer, "_step", killed)
    assert distill(make_config(), "--resume") == 0
    assert read_manifest(tmp_path / "student").quality
    assert (tmp_path / "student.work" / "evaluation.json").exists()


def test_a_run_killed_while_it_exported_builds_the_student(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("models.distill.distiller.build_student", killed)
        assert distill(make_config(), "--no-eval") == 130
    monkeypatch.setattr(trainer_module.Trainer, "_step", killed)
    assert distill(make_config(), "--no-eval", "--resume") == 0
    assert (tmp_path / "student" / "manifest.json").exists()


def test_a_student_of_other_exits_is_in_the_way_of_a_resumed_run(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert distill(make_config(), "--no-eval") == 0
    manifest = read_manifest(tmp_path / "student")
    write_manifest(tmp_path / "student", msgspec.structs.replace(manifest, exits_sha256="ab" * 32))
    assert distill(make_config(), "--no-eval", "--resume") == 2
    line = error_line(capsys)
    assert "is in the way" in line
    assert "built from exits with SHA-256 abababababab" in line


NOTHING_HELD_OUT = SMALL.replace("heldout_share = 0.1", "heldout_share = 0.0")


def test_nothing_to_measure_with_is_said_before_training(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert distill(make_config(NOTHING_HELD_OUT)) == 2
    assert "text.heldout_share is 0 and no eval_*.jsonl" in error_line(capsys)
    assert not (tmp_path / "student.work").exists()
    variations = tmp_path / "variations.toml"
    variations.write_text("[a]\nseed = 1\n")
    assert distill(make_config(NOTHING_HELD_OUT), "--ablation", str(variations)) == 2
    assert "text.heldout_share is 0 in base, a" in error_line(capsys)


def test_evaluation_files_alone_are_measured_with(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(NOTHING_HELD_OUT, data=tmp_path / "data" / "rows.jsonl")
    rows = (tmp_path / "data" / "rows.jsonl").read_text().splitlines()
    (tmp_path / "data" / "eval_two.jsonl").write_text("\n".join(rows[:2]) + "\n")
    assert distill(config) == 0
    evaluation = json.loads((tmp_path / "student.work" / "evaluation.json").read_text())
    assert evaluation["num_rows"] == {"two": 2}


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config()
    before = sorted(tmp_path.rglob("*"))
    assert distill(config, "--dry-run") == 0
    assert sorted(tmp_path.rglob("*")) == before
    said = capsys.readouterr().out
    assert "cut        knowledge:2, adapter:2" in said
    assert "knowledge_exit behind 2 layers" in said


def test_an_interrupted_run_goes_on_with_resume_alone(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, step, steps = make_config(), trainer_module.Trainer._step, list[int]()

    def stopped(self: trainer_module.Trainer) -> None:
        if self.progress.step == 2:
            raise KeyboardInterrupt
        step(self)

    def counted(self: trainer_module.Trainer) -> None:
        steps.append(self.progress.step)
        step(self)

    monkeypatch.setattr(trainer_module.Trainer, "_step", stopped)
    assert distill(config, "--no-eval") == 130
    assert not (tmp_path / "student").exists()
    monkeypatch.setattr(trainer_module.Trainer, "_step", counted)
    assert distill(config, "--no-eval") == 2
    assert "--resume" in error_line(capsys)
    assert steps == []
    assert distill(config, "--no-eval", "--resume") == 0
    assert steps[0] == 2
    assert (tmp_path / "student" / "manifest.json").exists()


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of an error; what a progress bar left stands before it."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fenhe: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("more", "lines", "arguments", "words"),
    [
        ("colour = 1\n", {}, (), "run.toml: there is no setting colour"),
        ("[training]\nepoch = 1\n", {}, (), "there is no setting training.epoch;"),
        ("[training]\nepochs = 0\n", {}, (), "training.epochs must be above 0"),
        ("", {"teacher": "/nowhere/model.gguf"}, (), "/nowhere/model.gguf"),
        ("", {"teacher": "no-such-model"}, (), "no-such-model"),
        ("", {"data": "/nowhere/rows.jsonl"}, (), "/nowhere/rows.jsonl does not exist"),
        ("", {"data": "/nowhere/rows.jsonl"}, ("--dry-run",), "/nowhere/rows.jsonl does not exist"),
        (SMALL, {}, ("--boundaries", "first:1,last:9"), "layers"),
        (SMALL, {}, ("--pick", "edge", "--no-eval"), "leave --no-eval out"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(
    make_config: MakeConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: str,
    lines: dict[str, str],
    arguments: tuple[str, ...],
    words: str,
) -> None:
    assert distill(make_config(more, **lines), *arguments) == 2
    assert words in error_line(capsys)
    assert not (tmp_path / "student").exists()


def test_a_config_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert distill(tmp_path / "none.toml") == 2
    assert "none.toml does not exist; three lines do: teacher, data, out" in error_line(capsys)


def test_a_folder_in_the_way_is_left_alone(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "mine.txt").write_text("mine")
    assert distill(make_config()) == 2
    assert f"{tmp_path / 'student'} is in the way" in error_line(capsys)
    assert [file.name for file in (tmp_path / "student").iterdir()] == ["mine.txt"]
    assert not (tmp_path / "student.work").exists()


def test_a_student_is_no_teacher(make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "manifest.json").write_text("{}")
    assert distill(make_config(teacher=tmp_path / "served")) == 2
    assert "is a student" in error_line(capsys)


def test_without_torch_it_says_what_to_install(make_config: MakeConfig) -> None:
    program = (
        "import sys; sys.modules['torch'] = None; from server.commands.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "distill", str(make_config())]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stderr == "fenhe: `fenhe distill` needs torch; install it with `pip install 'fenhe[distill]'`\n"


WIDTHS = """precisions = ["fp32"]
[text]
max_tokens = 96
heldout_share = 0.2
[widths]
shares = { wide = 0.75, narrow = 0.5 }
least_share = 0.25
samples = [{ temperature = 0.7 }]
measured_tokens = 200
[widths.leg]
batch_tokens = 256
frequent_tokens = 50
head_tokens = 20
"""


def test_a_config_of_widths_becomes_a_student_that_is_measured_and_picked_from(
    make_config: MakeConfig, tiny_source: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(WIDTHS, teacher=tiny_source("llama", intermediate_size=512))
    assert distill(config, "--pick", "edge") == 0
    manifest, digest = read_manifest(tmp_path / "student"), tmp_path / "student.work" / "evaluation.exits"
    assert {quality.path for quality in manifest.quality} == {"wide", "narrow", "full"}
    assert digest.read_text().strip() == manifest.widths_sha256
    assert distill(config, "--pick", "edge") == 0
    digest.write_text("0" * 64)
    capsys.readouterr()
    assert distill(config, "--pick", "edge") == 2
    assert "it was measured of widths with SHA-256 000000000000" in error_line(capsys)
    assert distill(config) == 2
    assert "go on with --resume" in error_line(capsys)
    assert distill(config, "--resume", "--pick", "edge") == 0
