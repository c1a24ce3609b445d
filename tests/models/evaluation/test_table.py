"""Records as JSON, and their place in a manifest."""

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from models.building.build import build_student
from models.errors import ConfigError
from models.evaluation.table import (
    Evaluation,
    JudgedFigures,
    Measure,
    Point,
    TaskFigures,
    TaskRetention,
    measured_of,
    read_evaluation,
    store_evaluation,
    with_evaluation,
    write_evaluation,
    write_measured,
)
from models.student.manifest import Measured, Quality, Retention, read_manifest


def evaluation(score: float = 0.9) -> Evaluation:
    kept = TaskRetention(task="math", score=score, low=score - 0.1, high=score + 0.1, measures=("a_likelihood",))
    measure = Measure(
        name="a_likelihood",
        task="math",
        kind="likelihood",
        value=2.0,
        full_value=1.8,
        ratio=0.9,
        low=0.8,
        high=1.0,
        n=5,
        num_tokens=70,
    )
    point = Point(
        path="knowledge",
        precision="fp32",
        layers=1,
        compute_share=0.4,
        compute_share_with_attention=0.4,
        agreement=0.7,
        kl=0.3,
        perplexity_ratio=1.2,
        tasks={"math": TaskFigures(agreement=0.7, kl=0.3, perplexity_ratio=1.2, num_tokens=70)},
        retention={"math": kept},
        reference_retention={"math": kept},
        measures=(measure,),
        bytes=100,
        decode_tokens_per_s={1: 50.0, 32: 300.0},
    )
    return Evaluation(
        student="tiny",
        full_path="full",
        reference_precision="fp32",
        attention_context_tokens=1024,
        machine="here",
        seed=0,
        num_rows={"a": 5},
        num_skipped=0,
        points=(point,),
    )


def test_json_has_every_field_of_the_issue_and_reads_back(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    write_evaluation(file, evaluation())
    point = json.loads(file.read_text())["points"][0]
    for name in ("path", "precision", "layers", "compute_share", "agreement", "kl", "perplexity_ratio", "bytes"):
        assert name in point
    assert set(point["retention"]["math"]) >= {"score", "low", "high"}
    assert point["decode_tokens_per_s"] == {"1": 50.0, "32": 300.0}
    assert read_evaluation(file) == evaluation()
    assert list(tmp_path.iterdir()) == [file]


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    with pytest.raises(ConfigError, match="fenhe eval"):
        read_evaluation(file)
    write_evaluation(file, msgspec.structs.replace(evaluation(), format_version=1))
    with pytest.raises(ConfigError, match="format 1"):
        read_evaluation(file)
    file.write_text('{"student": 1}')
    with pytest.raises(ConfigError, match=r"out\.json"):
        read_evaluation(file)


INTERVALS = {
    "perplexity_ratio_own": (1.1, 1.3),
    "perplexity_ratio_human": (1.0, 1.2),
    "blimp_kept": (0.9, 1.0),
    "kl": (0.1, 0.6),
    "agreement": (0.7, 0.9),
}


def judged(kl: float) -> JudgedFigures:
    return JudgedFigures(
        verdict_fidelity="failed",
        verdict_field="passed",
        gate="passed",
        perplexity_ratio_own=1.2,
        perplexity_ratio_human=1.1,
        perplexity_ratio_plain=None,
        information_kept=None,
        choice_kept=None,
        accuracy_kept=None,
        blimp_kept=0.97,
        rescored_nats_ratio=None,
        repetition_ratio=None,
        kl=kl,
        agreement=0.8,
        rows=dict.fromkeys(INTERVALS, 9),
        intervals=INTERVALS,
    )


def with_heads(kl: float = 0.3) -> Evaluation:
    """The same point with either head, the cheap one with another retention."""
    plain = evaluation()
    exact = msgspec.structs.replace(plain.points[0], figures={"math": judged(kl)})
    cheap = msgspec.structs.replace(exact, head="cheap", retention=evaluation(0.2).points[0].retention)
    return msgspec.structs.replace(plain, points=(exact, cheap))


def test_figures_are_kept_for_each_head_and_replaced(tiny_source: Callable[..., Path], tmp_path: Path) -> None:
    build_student(tiny_source("llama"), tmp_path / "student", precisions=("fp32",))
    manifest = read_manifest(tmp_path / "student")
    for kl in (0.5, 0.3):
        manifest = with_evaluation(manifest, with_heads(kl))
    assert [(one.head, one.task, one.variant, one.language, one.kl) for one in manifest.figures] == [
        ("exact", "math", "fp32", "en", 0.3),
        ("cheap", "math", "fp32", "en", 0.3),
    ]
    assert manifest.figures[0].verdict_field == "passed"
    assert manifest.figures[0].intervals["blimp_kept"] == (0.9, 1.0)
    kept = manifest.find_retention("knowledge", "math", "fp32")
    assert kept is not None
    assert kept.score == 0.9  # that of the exact head


def test_what_ships_with_exits_reads_back(tiny_source: Callable[..., Path], tmp_path: Path) -> None:
    build_student(tiny_source("llama"), tmp_path / "student", precisions=("fp32",))
    manifest = with_evaluation(read_manifest(tmp_path / "student"), with_heads())
    write_measured(tmp_path / "quality.json", measured_of(manifest))
    read = msgspec.json.decode((tmp_path / "quality.json").read_bytes(), type=Measured)
    assert (read.figures, read.retention, read.quality) == (manifest.figures, manifest.retention, manifest.quality)


def test_the_manifest_gets_the_figures_in_place_of_older_ones(tiny_source: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "student"
    build_student(tiny_source("llama"), folder, precisions=("fp32",))
    store_evaluation(folder, evaluation(0.5))
    store_evaluation(folder, evaluation(0.75))
    manifest = read_manifest(folder)
    kept = Retention(path="knowledge", task="math", variant="fp32", score=0.75, low=0.65, high=0.85)
    assert manifest.retention == (kept,)
    assert manifest.find_retention("knowledge", "math", "fp32") == kept
    assert manifest.quality == (
        Quality(path="knowledge", variant="fp32", cross_entropy=2.0, text="a answers", num_tokens=70),
    )
    others = with_evaluation(manifest, evaluation()).retention
    assert len(others) == 1
    before = evaluation()
    measure = msgspec.structs.replace(before.points[0].measures[0], name="b_information", kind="information")
    point = msgspec.structs.replace(before.points[0], measures=(*before.points[0].measures, measure))
    with_information = with_evaluation(manifest, msgspec.structs.replace(before, points=(point,)))
    assert with_information.quality == manifest.quality  # information is no cross-entropy
    unknown = msgspec.structs.replace(before.points[0], retention={})
    assert with_evaluation(manifest, msgspec.structs.replace(before, points=(unknown,))).retention == ()
