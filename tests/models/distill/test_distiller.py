"""A tiny random teacher, distilled for a few seconds: exits learn, and a resumed run ends like an uninterrupted one."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from models.distill import trainer as trainer_module
from models.distill.config import BranchSettings, DistillConfig, ExitConfig, TrainingSettings, config_from
from models.distill.distiller import Distiller
from models.distill.preparation import DataSettings
from models.distill.schedules import LearningRateSchedule, Stage
from models.errors import ConfigError, StepFailed
from models.exits import read_exits
from models.manifest import read_manifest

MakeSource = Callable[..., Path]
TEXT = "the quick brown fox jumps over the lazy dog and then other foxes jump over it too again"
WORDS = TEXT.split()


# A random teacher did not write the text: cross-entropy with it would lead away from the teacher.
SOFT_ALONE = (Stage(name="soft", share=1.0, weights={"soft_target_kl": 1.0}),)


def write_data(folder: Path, num_rows: int = 120) -> Path:
    folder.mkdir(exist_ok=True)
    draw = random.Random(1)
    rows = [
        {
            "task": ("math", "fact")[index % 2],
            "prompt": " ".join(draw.choices(WORDS, k=9)),
            "answer": " ".join(draw.choices(WORDS, k=12)),
        }
        for index in range(num_rows)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def config(tiny_source: MakeSource, tmp_path: Path) -> DistillConfig:
    teacher = tiny_source("llama")
    return DistillConfig(
        teacher=str(teacher),
        data=str(write_data(tmp_path / "data")),
        out=str(tmp_path / "student"),
        modules="knowledge:2,adapter:2",
        text=DataSettings(max_tokens=96, heldout_share=0.1),
        training=TrainingSettings(epochs=20, batch_tokens=256, head_tokens=64, checkpoint_s=1e9),
        learning_rate=LearningRateSchedule(peak=2e-3),
        stages=SOFT_ALONE,
        precisions=("fp32",),
    )


def trained(config: DistillConfig, **options: Any) -> Distiller:
    torch.set_num_threads(1)
    distiller = Distiller(config=config)
    distiller.train(**options)
    return distiller


def mean_kl(distiller: Distiller) -> float:
    figures = distiller.evaluate()
    return sum(figure.kl for figure in figures) / len(figures)


def test_distiller_teaches_a_wrong_layer_to_agree_with_the_teacher(config: DistillConfig, tmp_path: Path) -> None:
    wrong = ExitConfig(after="knowledge", copied_from=(0,), has_map=False)
    data = str(write_data(tmp_path / "more", 400))
    config = replace(config, modules="knowledge:3,adapter:1", exits=(wrong,), data=data)
    short = trained(replace(config, training=replace(config.training, epochs=0.1), work=config.out + ".short"))
    long = replace(config.training, epochs=12, batch_tokens=512, head_tokens=None)
    taught = trained(replace(config, training=long, learning_rate=LearningRateSchedule(peak=2e-2)))
    assert mean_kl(taught) < 0.3 * mean_kl(short)
    # The random teacher's own likeliest token has little more probability than the next ones.
    assert min(figure.agreement for figure in taught.evaluate()) > 0.45


def test_distiller_gives_the_same_weights_for_the_same_seed(config: DistillConfig) -> None:
    one = trained(replace(config, training=replace(config.training, epochs=0.5), work=config.out + ".a"))
    two = trained(replace(config, training=replace(config.training, epochs=0.5), work=config.out + ".b"))
    first, second = (distiller.exits[0].tensors() for distiller in (one, two))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_distiller_resumed_after_a_kill_ends_like_an_uninterrupted_run(
    config: DistillConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(
        config, training=replace(config.training, epochs=2, checkpoint_s=1e-9), weighting="dynamic_average"
    )
    whole = trained(replace(config, work=config.out + ".whole"))
    config = replace(config, work=config.out + ".torn")
    step = trainer_module.Trainer._step

    def killed(self: trainer_module.Trainer) -> None:
        if self.progress.step == 3:
            raise KeyboardInterrupt
        step(self)

    monkeypatch.setattr(trainer_module.Trainer, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        trained(config)
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="--resume"):
        trained(config)
    resumed = trained(config, resume=True)
    assert resumed.progress == whole.progress
    first, second = (distiller.exits[0].tensors() for distiller in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_distiller_refuses_to_resume_a_run_with_other_settings(config: DistillConfig) -> None:
    short = replace(config, training=replace(config.training, epochs=0.2))
    trained(short)
    with pytest.raises(ConfigError, match="other settings or data"):
        trained(replace(short, seed=1), resume=True)


def test_distiller_stops_at_a_loss_that_is_not_finite_and_names_the_checkpoint(
    config: DistillConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, training=replace(config.training, checkpoint_s=1e-9))
    weights = trainer_module.Trainer._token_weights

    def poisoned(self: trainer_module.Trainer, batch: Any) -> torch.Tensor:
        values = weights(self, batch)
        return values * float("nan") if self.progress.step == 2 else values

    monkeypatch.setattr(trainer_module.Trainer, "_token_weights", poisoned)
    with pytest.raises(StepFailed, match=r"not finite.*step-00000002\.pt"):
        trained(config)


def test_distiller_exports_a_student_whose_exits_are_the_trained_ones(config: DistillConfig) -> None:
    exits = (
        ExitConfig(after="knowledge", path="fast", tasks=("math",)),
        ExitConfig(after="knowledge", path="facts", tasks=("fact",), has_map=False),
    )
    distiller = trained(replace(config, exits=exits, training=replace(config.training, epochs=1)))
    manifest = distiller.export()
    assert read_manifest(Path(config.out)) == manifest
    assert {path.name for path in manifest.paths} == {"fast", "facts", "full"}
    assert (manifest.tasks["math"], manifest.tasks["fact"], manifest.tasks["legal"]) == ("fast", "facts", "full")
    plan = read_exits(distiller.work / "exits.safetensors").plan
    assert [exit.has_map for exit in plan.exits] == [True, False]


def test_distiller_trains_a_tasks_exit_on_that_task_alone(config: DistillConfig) -> None:
    both = ExitConfig(after="knowledge")
    alone = replace(both, path="math", tasks=("math",))
    distiller = trained(replace(config, exits=(both, alone), training=replace(config.training, epochs=1)))
    log = [json.loads(line) for line in (distiller.work / "log.jsonl").read_text().splitlines()]
    assert log[-1]["loss"].keys() == {"knowledge_exit", "math_exit"}
    first, second = (exit.tensors() for exit in distiller.exits)
    assert any(not torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "options",
    [
        {"weighting": "controller", "controller": {"window_tokens": 2000}},
        {"weighting": "gradient_guided"},
        {"weighting": "dynamic_average"},
        {"mining": {}},
        {"alignment": {}},
        {"adversarial": {}},
        {"quantised": {"precision": "int4", "share": 0.5}},
        {"quantised": {"precision": "w8a8", "share": 0.5}},
        {"training": {"soft_targets": "top_k"}},
        {"training": {"head_tokens": None}},
        {"stages": [{"name": "one", "share": 1.0, "weights": {"reverse_kl": 0.5, "jensen_shannon": 0.5}}]},
        {
            "stages": [
                {"name": "features", "share": 0.5, "weights": {"hidden_mse": 1.0, "hidden_cosine": 1.0}},
                {"name": "attention", "share": 0.5, "weights": {"attention_transfer": 0.5}},
            ]
        },
        {"transfer": "sequence", "stages": [{"name": "text", "share": 1.0, "weights": {"task_cross_entropy": 1.0}}]},
    ],
)
def test_distiller_learns_with_every_option(options: dict[str, Any], tiny_source: MakeSource, tmp_path: Path) -> None:
    plain = {
        "teacher": str(tiny_source("llama")),
        "data": str(write_data(tmp_path / "data", 60)),
        "out": str(tmp_path / "student"),
        "modules": "knowledge:2,adapter:2",
        "learning_rate": {"peak": 2e-3},
        "stages": [{"name": "soft", "share": 1.0, "weights": {"soft_target_kl": 1.0}}],
        "training": {"epochs": 6, "batch_tokens": 256, "head_tokens": 64, "log_steps": 1} | options.pop("training", {}),
    }
    distiller = trained(config_from(plain | options, "test"))
    log = [
        json.loads(line)["terms"]["knowledge_exit"] for line in (distiller.work / "log.jsonl").read_text().splitlines()
    ]
    assert len(log) == distiller.progress.step
    # The map is at its best for the alignment when training begins: that term only holds it back.
    for term in log[-1].keys() & log[0].keys() - {"loss", "module_alignment"}:
        assert log[-1][term] < log[0][term], term


def test_distiller_merges_branches_into_the_exit_that_learned_all_tasks(config: DistillConfig) -> None:
    config = replace(config, training=replace(config.training, epochs=1))
    plain = trained(replace(config, work=config.out + ".plain"))
    merged = trained(replace(config, branches=BranchSettings(merge="average", learning_rate_share=1.0)))
    first, second = (distiller.exits[0].tensors() for distiller in (plain, merged))
    assert any(not torch.equal(first[name], second[name]) for name in first)
    resumed = trained(replace(config, branches=BranchSettings(merge="average", learning_rate_share=1.0)), resume=True)
    third = resumed.exits[0].tensors()
    assert all(torch.equal(second[name], third[name]) for name in second)


def test_distiller_refuses_an_exit_for_a_task_without_text(config: DistillConfig) -> None:
    with pytest.raises(ConfigError, match="no training text of task maths; there is fact, math"):
        trained(replace(config, exits=(ExitConfig(after="knowledge", tasks=("maths",)),)))


def test_distiller_judges_divergence_anew_in_every_stage(config: DistillConfig) -> None:
    """The second stage's loss is many times the first one's."""
    stages = (
        Stage(name="cosine", share=0.5, weights={"hidden_cosine": 0.01}),
        Stage(name="soft", share=0.5, weights={"soft_target_kl": 1.0}),
    )
    training = replace(config.training, epochs=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "SETTLED_STEPS", 5)
        assert trained(replace(config, stages=stages, training=training)).progress.phase.startswith("soft")
