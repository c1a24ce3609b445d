"""A tiny random teacher, distilled for a few seconds: exits learn, and a resumed run ends like an uninterrupted one."""

import itertools
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from models.building.exits import read_exits
from models.building.width_file import WidthPlan, read_width_file, write_width_file
from models.distill.config import BranchSettings, DistillConfig, ExitConfig, TrainingSettings, config_from
from models.distill.data.preparation import DataSettings, Prepared
from models.distill.data.prompt_writing import PromptSettings
from models.distill.distiller import Distiller
from models.distill.loss.objective import Objective
from models.distill.network.exit_model import ExitModel
from models.distill.run import divergence
from models.distill.run import trainer as trainer_module
from models.distill.run.passes import Passes
from models.distill.run.teacher_choice import TeacherChoice
from models.distill.steering.adaptive_weights import AdaptiveWeights
from models.distill.steering.schedules import LearningRateSchedule, Stage, TemperatureSchedule
from models.distill.width_settings import LegSettings, Sample, WidthSettings
from models.errors import ConfigError, StepFailed
from models.sampling import RecommendedSampling
from models.student.manifest import read_manifest
from models.tokenizer import Tokenizer

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
    other = replace(short, seed=1, data=str(write_data(Path(config.out + ".more"), 50)))
    with pytest.raises(ConfigError, match="belongs to a run with other data, seed; restore that"):
        trained(other, resume=True)


def test_distiller_goes_on_with_another_rate_and_moved_files(
    config: DistillConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The advice in the error of a run that diverged works."""
    config = replace(config, training=replace(config.training, epochs=1, checkpoint_s=1e-9, log_steps=1))
    kill_at(3, config, monkeypatch)
    for moved in (config.teacher, config.data):
        shutil.move(str(moved), f"{moved}.moved")
    lower = LearningRateSchedule(peak=1e-4)
    config = replace(
        config,
        teacher=f"{config.teacher}.moved",
        data=f"{config.data}.moved",
        learning_rate=lower,
        training=replace(config.training, divergence_factor=9),
        branches=BranchSettings(epochs=0.1),
    )
    distiller = trained(config, resume=True)
    said = [str(record.args[0]) for record in caplog.records if isinstance(record.args, tuple) and record.args]
    assert {"branches", "data", "learning_rate.peak", "teacher", "training.divergence_factor"} <= set(said)
    rates = [json.loads(line)["learning_rate"] for line in (distiller.work.path / "log.jsonl").read_text().splitlines()]
    assert min(rates[:3]) > 1e-4 >= max(rates[3:])
    assert len(rates) == distiller.progress.step


def test_distiller_out_of_memory_goes_on_in_smaller_batches(
    config: DistillConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = replace(config, training=replace(config.training, epochs=2, checkpoint_s=1e-9, log_steps=1))
    num_steps = trained(replace(whole, work=config.out + ".whole")).progress.step
    kill_at(num_steps // 2, whole, monkeypatch)
    smaller = replace(whole, training=replace(whole.training, batch_tokens=96))
    distiller = trained(smaller, resume=True)
    half = trained(replace(smaller, work=config.out + ".small")).progress.step / 2
    assert distiller.progress.step - num_steps // 2 == pytest.approx(half, abs=2)
    resumed = trained(smaller, resume=True)
    assert resumed.progress == distiller.progress


def kill_at(step: int, config: DistillConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train until that step is about to begin; one more line is in the log than the checkpoint knows of."""
    real = trainer_module.Trainer._step

    def killed(self: trainer_module.Trainer) -> None:
        if self.progress.step == step:
            with (config.work_folder.path / "log.jsonl").open("a") as log:
                log.write(json.dumps({"step": step + 7, "num_tokens": 10**9, "loss": {}}) + '\n{"step"')
            raise KeyboardInterrupt
        real(self)

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module.Trainer, "_step", killed)
        with pytest.raises(KeyboardInterrupt):
            trained(config)


def test_distiller_forgets_what_was_logged_beyond_the_checkpoint(
    config: DistillConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, training=replace(config.training, epochs=1, checkpoint_s=1e-9, log_steps=1))
    kill_at(2, config, monkeypatch)
    distiller = trained(config, resume=True)
    steps = [json.loads(line)["step"] for line in (distiller.work.path / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, distiller.progress.step + 1))


def test_distiller_that_keeps_nothing_names_no_checkpoint(
    config: DistillConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(replace(config, training=replace(config.training, epochs=0.2)))
    monkeypatch.setattr(Passes, "_token_weights", lambda self, batch: batch.weight_N * float("nan"))
    with pytest.raises(StepFailed, match=r"not finite.*; this run keeps no checkpoints$"):
        trained(config, keep=False)


def test_distiller_takes_the_data_of_the_last_call(config: DistillConfig, tmp_path: Path) -> None:
    config = replace(config, training=replace(config.training, epochs=0.2))
    distiller = trained(config, keep=False)
    first = distiller.prepared().examples
    distiller.train(str(write_data(tmp_path / "fewer", 30)), keep=False)
    assert len(distiller.prepared().examples) < len(first) / 2


def test_distiller_exports_exits_of_its_own_run_only(config: DistillConfig) -> None:
    config = replace(config, training=replace(config.training, epochs=0.2))
    trained(config)
    with pytest.raises(ConfigError, match=r"exits\.safetensors belongs to a run with other data, seed"):
        Distiller(config=replace(config, seed=1)).export()
    with pytest.raises(ConfigError, match=r"exits\.safetensors belongs to a run with other branches"):
        Distiller(config=replace(config, branches=BranchSettings())).export()
    again = replace(config, learning_rate=LearningRateSchedule(peak=5e-4))
    assert Distiller(config=again).export() == read_manifest(Path(config.out))


def test_distiller_without_held_out_rows_says_so(config: DistillConfig) -> None:
    short = replace(config, text=replace(config.text, heldout_share=0.0), training=replace(config.training, epochs=0.1))
    with pytest.raises(ConfigError, match=r"no held-out rows.*text\.heldout_share"):
        trained(short).evaluate()


def test_distiller_refuses_sequence_transfer_of_text_that_nobody_wrote(
    config: DistillConfig, tiny_source: MakeSource
) -> None:
    text = (Stage(name="text", share=1.0, weights={"task_cross_entropy": 1.0}),)
    sequence = replace(config, transfer="sequence", teachers=(str(tiny_source("qwen2")),), stages=text)
    with pytest.raises(ConfigError, match=r"every training row has an answer already.*labels\.share_of_answered"):
        trained(sequence)


def test_distiller_weighs_an_exit_by_its_learning_rate(config: DistillConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size of a loss would not do: the optimiser divides it out."""
    exits = (ExitConfig(after="knowledge", has_map=False), ExitConfig(after="knowledge", path="b", has_map=False))
    config = replace(config, exits=exits, training=replace(config.training, epochs=0.2))
    monkeypatch.setattr(AdaptiveWeights, "module_weight", lambda self, exit: 0.1 if exit == "b_exit" else 1.0)
    distiller = trained(config, keep=False)
    start = dict(distiller.trunk.copy_of(3).tensors())
    moved = [
        sum(float((value - start[name.split(".", 2)[2]]).abs().sum()) for name, value in exit.tensors().items())
        for exit in distiller.exits
    ]
    assert moved[1] < 0.2 * moved[0]


def test_distiller_branches_learn_by_the_exits_losses_and_all_teachers(
    config: DistillConfig, tiny_source: MakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[set[str], int]] = []
    real = Objective.terms

    def terms(
        self: Objective, exit: ExitModel, hidden: Any, batch: Any, head: Any, weights: Any, temperature: Any
    ) -> Any:
        if "." in exit.name:
            seen.append((set(weights), num_speaking[-1]))
        return real(self, exit, hidden, batch, head, weights, temperature)

    num_speaking: list[int] = []
    speaking = TeacherChoice.current

    def counted(self: TeacherChoice) -> list[Any]:
        num_speaking.append(len(speaking(self)))
        return speaking(self)

    monkeypatch.setattr(Objective, "terms", terms)
    monkeypatch.setattr(TeacherChoice, "current", counted)
    exit = ExitConfig(after="knowledge", losses={"jensen_shannon": 1.0})
    trained(
        replace(
            config,
            exits=(exit,),
            teachers=(str(tiny_source("qwen2")),),
            ensemble="mean",
            branches=BranchSettings(epochs=0.3),
            training=replace(config.training, epochs=0.2),
        )
    )
    assert seen
    assert all(found == ({"jensen_shannon"}, 2) for found in seen)


@pytest.mark.parametrize("ends", [(0.2, 6.0), (4.0, 0.4)])
def test_distiller_does_not_take_a_moving_temperature_for_divergence(
    config: DistillConfig, ends: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(divergence, "SETTLED_STEPS", 3)
    monkeypatch.setattr(divergence, "SMOOTHING", 0.2)
    config = replace(
        config,
        temperature=TemperatureSchedule(start=ends[0], end=ends[1]),
        learning_rate=LearningRateSchedule(peak=1e-6),
        training=replace(config.training, epochs=3, divergence_factor=1.5),
    )
    trained(config, keep=False)


def test_distiller_stops_a_run_that_diverges(config: DistillConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divergence, "SETTLED_STEPS", 3)
    monkeypatch.setattr(divergence, "SMOOTHING", 0.2)
    real, growth = Objective.terms, itertools.count(1)

    def growing(self: Objective, *arguments: Any) -> Any:
        total, found = real(self, *arguments)
        factor = float(next(growth))
        return total * factor, {name: value * factor for name, value in found.items()}

    monkeypatch.setattr(Objective, "terms", growing)
    with pytest.raises(StepFailed, match=r"the loss of knowledge_exit diverges; make learning_rate\.peak smaller"):
        trained(config, keep=False)


def test_distiller_stops_at_a_loss_that_is_not_finite_and_names_the_checkpoint(
    config: DistillConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, training=replace(config.training, checkpoint_s=1e-9))
    weights, steps = Passes._token_weights, itertools.count()

    def poisoned(self: Passes, batch: Any) -> torch.Tensor:
        values = weights(self, batch)
        return values * float("nan") if next(steps) == 2 else values

    monkeypatch.setattr(Passes, "_token_weights", poisoned)
    with pytest.raises(StepFailed, match=r"not finite.*step-00000002\.pt"):
        trained(config)


def test_distiller_exports_a_student_whose_exits_are_the_trained_ones(config: DistillConfig) -> None:
    exits = (
        ExitConfig(after="knowledge", path="fast", tasks=("math",)),
        ExitConfig(after="knowledge", path="facts", tasks=("fact",), has_map=False),
    )
    (Path(config.teacher) / "generation_config.json").write_text('{"temperature": 0.6, "top_k": 20}')
    distiller = trained(replace(config, exits=exits, training=replace(config.training, epochs=1)))
    manifest = distiller.export()
    assert manifest.sampling == RecommendedSampling(temperature=0.6, top_k=20)
    assert read_manifest(Path(config.out)) == manifest
    assert {path.name for path in manifest.paths} == {"fast", "facts", "full"}
    assert (manifest.tasks["math"], manifest.tasks["fact"], manifest.tasks["legal"]) == ("fast", "facts", "full")
    plan = read_exits(distiller.work.path / "exits.safetensors").plan
    assert [exit.has_map for exit in plan.exits] == [True, False]


def test_distiller_trains_a_tasks_exit_on_that_task_alone(config: DistillConfig) -> None:
    both = ExitConfig(after="knowledge")
    alone = replace(both, path="math", tasks=("math",))
    distiller = trained(replace(config, exits=(both, alone), training=replace(config.training, epochs=1)))
    log = [json.loads(line) for line in (distiller.work.path / "log.jsonl").read_text().splitlines()]
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
        {"quantised": {"precision": "int8", "share": 0.5}},
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
        {
            "transfer": "sequence",
            "teachers": ["other"],
            "labels": {"share_of_answered": 0.5, "max_tokens": 12},
            "stages": [{"name": "text", "share": 1.0, "weights": {"task_cross_entropy": 1.0}}],
        },
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
    if "teachers" in options:
        options = options | {"teachers": [str(tiny_source("qwen2"))]}
    distiller = trained(config_from(plain | options, "test"))
    log = [
        json.loads(line)["terms"]["knowledge_exit"]
        for line in (distiller.work.path / "log.jsonl").read_text().splitlines()
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
        patch.setattr(divergence, "SETTLED_STEPS", 5)
        assert trained(replace(config, stages=stages, training=training)).progress.phase.startswith("soft")


def narrow(config: DistillConfig, tmp_path: Path, **fields: Any) -> DistillConfig:
    plain = tmp_path / "plain.jsonl"
    draw = random.Random(3)
    lines = [{"task": "fact", "text": " ".join(draw.choices(WORDS, k=60))} for _ in range(12)]
    plain.write_text("".join(json.dumps(line) + "\n" for line in lines))
    widths = WidthSettings(
        shares={"wide": 0.75, "narrow": 0.5},
        least_share=0.25,
        samples=(Sample(temperature=0.7),),
        plain=(str(plain),),
        measured_tokens=200,
        rank=64,
        output_rank=64,
        leg=LegSettings(max_seconds=1e9, batch_tokens=256, frequent_tokens=50, head_tokens=20),
        **fields,
    )
    return replace(config, widths=widths, modules="auto")


def test_widths_are_trained_and_built_into_a_student(
    tiny_source: MakeSource, config: DistillConfig, tmp_path: Path
) -> None:
    teacher = tiny_source("llama", intermediate_size=512)
    config = narrow(replace(config, teacher=str(teacher)), tmp_path)
    trained(config).export()
    manifest = read_manifest(Path(config.out))
    assert [width.name for width in manifest.widths] == ["wide", "narrow"]
    assert [sum(width.neurons) for width in manifest.widths] == [4 * 384, 4 * 256]
    assert {path.name: path.width for path in manifest.paths} == {"full": "", "wide": "wide", "narrow": "narrow"}
    (leg,) = read_width_file(config.work_folder.widths).plan.training["legs"]
    assert leg["tokens"] > 1000
    assert leg["tokens_by_task"].keys() == {"math", "fact", "plain fact"}
    assert set(leg["held_out_kl"]) == {f"{width} {task}" for width in ("wide", "narrow") for task in ("math", "fact")}


def test_a_second_leg_begins_where_the_first_ended(
    tiny_source: MakeSource, config: DistillConfig, tmp_path: Path
) -> None:
    teacher = tiny_source("llama", intermediate_size=512)
    first = narrow(replace(config, teacher=str(teacher)), tmp_path)
    trained(first)
    start = first.work_folder.widths
    second = narrow(replace(first, work=str(tmp_path / "second")), tmp_path, start=str(start))
    trained(second)
    one, other = (read_width_file(file) for file in (start, second.work_folder.widths))
    assert one.plan.widths == other.plan.widths
    before, after = one.plan.training["legs"], other.plan.training["legs"]
    assert after[0] == before[0]
    assert len(after) == 2
    ends = [sum(leg["held_out_kl"].values()) for leg in after]
    assert ends[1] == pytest.approx(ends[0], rel=0.05)  # the same text again teaches little, and int8 costs little


def test_widths_of_another_model_are_no_start(tiny_source: MakeSource, config: DistillConfig, tmp_path: Path) -> None:
    teacher = tiny_source("llama", intermediate_size=512)
    file = tmp_path / "other.safetensors"
    write_width_file(file, WidthPlan(source_sha256="0" * 64, widths=(), paths=()), {})
    with pytest.raises(ConfigError, match=r"leave widths\.start out"):
        trained(narrow(replace(config, teacher=str(teacher)), tmp_path, start=str(file)))


def test_widths_and_exits_are_not_trained_together(config: DistillConfig, tmp_path: Path) -> None:
    both = replace(narrow(config, tmp_path), exits=(ExitConfig(after="knowledge"),))
    assert any("runs of their own" in problem for problem in both.problems())


def test_export_before_training_widths_is_refused(config: DistillConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"call train\(\) first"):
        Distiller(config=narrow(config, tmp_path)).export()


def test_a_leg_with_other_draws_is_another_leg(tiny_source: MakeSource, config: DistillConfig, tmp_path: Path) -> None:
    teacher = tiny_source("llama", intermediate_size=512)
    first = narrow(replace(config, teacher=str(teacher)), tmp_path)
    trained(first)
    assert first.widths is not None
    slower = replace(first.widths.leg, learning_rate=LearningRateSchedule(peak=1e-4), max_seconds=1e6)
    trained(replace(first, widths=replace(first.widths, leg=slower)), resume=True)
    other = replace(first.widths.leg, draws={"narrow": 1.0})
    with pytest.raises(ConfigError, match="run with other leg"):
        trained(replace(first, widths=replace(first.widths, leg=other)), resume=True)


class WordWriter:
    """Continues every prompt with words that its ids and the seed decide, and ends."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def answer(
        self, prompts: Sequence[tuple[int, ...]], *, max_tokens: int, temperature: float, top_p: float, seed: int
    ) -> Iterator[tuple[int, tuple[int, ...]]]:
        end = min(self._tokenizer.eos_token_ids)
        for index, prompt in enumerate(prompts):
            words = random.Random(hash((seed, prompt))).choices(WORDS, k=9)
            yield index, (*self._tokenizer.encode(" " + " ".join(words)), end)


def test_prompts_that_the_teacher_writes_are_answered_and_trained_on(config: DistillConfig) -> None:
    def prepared(config: DistillConfig) -> Prepared:
        tokenizer = Distiller(config=config).source.tokenizer()
        distiller = Distiller(config=config, answerer=lambda source: nullcontext(WordWriter(tokenizer)))
        return distiller.prepared()

    few = prepared(config)
    more = prepared(replace(config, prompts=PromptSettings(wanted={"math": 6, "fact": 2}), out=f"{config.out}-more"))
    new = [example for example in more.examples if example.source == "written by the teacher"]
    assert Counter(example.task for example in new) == {"math": 6, "fact": 2}
    assert len(more.examples) == len(few.examples) + 8
    assert more.num_by_teacher == 8
    assert more.held_out == few.held_out
    assert all(example.num_tokens > example.num_prompt_tokens + 1 for example in new)
