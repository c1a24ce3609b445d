"""`fenhe bench engines --engine vllm`: its cases, its figures and its random student. vLLM itself is not needed."""

from pathlib import Path

import msgspec
import pytest

from bench.engines import random_student, vllm_paths
from bench.engines.cli import run
from bench.engines.random_student import build_random_student, num_parameters, random_architecture
from bench.peers.vllm_paths import MAX_SEQUENCES, spread
from bench.protocol import Followed
from engines.vllm.form import served_form
from models.student.folder import Student
from models.student.manifest import Manifest


@pytest.fixture
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Manifest:
    small = msgspec.structs.replace(
        random_architecture(),
        hidden_size=16,
        intermediate_size=32,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        vocab_size=320,
    )
    monkeypatch.setattr(random_student, "random_architecture", lambda: small)
    return Student.open(build_random_student(tmp_path)).manifest


def test_random_student_is_large_and_has_three_depths(manifest: Manifest) -> None:
    assert num_parameters(random_architecture()) >= 500_000_000
    assert sorted(path.num_layers for path in served_form(manifest).paths.values()) == [10, 24, 32]


def test_cases_fill_the_batch(manifest: Manifest) -> None:
    found = {case: (subject, paths) for case, subject, paths in vllm_paths.cases(manifest)}
    assert {len(found[case][1]) for case in ("stock", "full", "mix", "least", "shallow_mixed")} == {MAX_SEQUENCES}
    assert found["stock"][0] == "stock"
    assert set(found["mix"][1]) == {"knowledge", "reasoning", "full"}
    assert set(found["least"][1]) == set(found["shallow_alone"][1]) == {"knowledge"}


def test_rows_are_spread_evenly() -> None:
    assert spread(("a", "b", "c"), 7) == ("a", "b", "c", "a", "b", "c", "a")


def test_figures_are_ratios_of_one_round(manifest: Manifest) -> None:
    seconds = {"stock": 10.0, "full": 12.5, "mix": 8.0, "least": 5.0, "shallow_alone": 1.0, "shallow_mixed": 3.0}
    answers = {
        case: Followed(num_tokens=100, total_s=total_s, gaps_s={"knowledge": (total_s,) * 9 + (100.0,)})
        for case, total_s in seconds.items()
    }
    figures = vllm_paths.figures_of(answers, manifest)
    assert figures["full_over_stock"] == pytest.approx(0.8)
    assert figures["mix_speedup"] == pytest.approx(12.5 / 8.0)
    assert figures["mix_over_ideal"] == pytest.approx(figures["mix_speedup"] / figures["mix_ideal"])
    assert 1.0 < figures["mix_ideal"] < 2.0
    assert figures["gap_p95_ms.shallow_mixed"] > figures["gap_p95_ms.shallow_alone"] > 1000.0
    assert "mix_over_ideal" in vllm_paths.render(figures, {name: [value] for name, value in figures.items()})
    named = {name.partition(".")[0] for name in figures}
    assert named == {name.partition(".")[0] for name in vllm_paths.FORMULAS}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "--student DIR, a student with fp32 weights, or --random is needed"),
        (["--random", "--tokens", "2"], "--tokens must be at least 8, not 2"),
        (["--random", "--json", "/nowhere/x.json"], "/nowhere/x.json: no such folder"),
    ],
)
def test_wrong_options_are_named(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--engine", "vllm", *options]) == 2
    assert said in capsys.readouterr().err
