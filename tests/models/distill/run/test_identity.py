"""What belongs to a run and what may change on the way."""

from typing import Any

import pytest

from models.distill.config import BranchSettings, DistillConfig, config_from
from models.distill.cutting.layout import planned_exits
from models.distill.data.examples import Example
from models.distill.run.identity import branches_key, changeable, differences, exits_key, run_key
from models.student.cut import parse_modules

EXAMPLE = Example(task="math", token_ids=(1, 2, 3), num_prompt_tokens=1, source="test")
THREE = {"teacher": "a.gguf", "data": "rows", "out": "student"}


def config_of(**values: Any) -> DistillConfig:
    return config_from(THREE | values, "test")


def key_of(config: DistillConfig, examples: Any = (EXAMPLE,), teachers: Any = ("sha",), cut: str = "a:2,b:2") -> str:
    modules = parse_modules(cut, 4)
    return run_key(config, examples, modules, planned_exits(config, modules), teachers)


@pytest.mark.parametrize(
    "values",
    [
        {"teacher": "moved/a.gguf", "data": ["moved"], "out": "other", "work": "w", "name": "n", "device": "cpu"},
        {"learning_rate": {"peak": 1e-5, "warmup_share": 0.2, "floor_share": 0.5}},
        {"training": {"batch_tokens": 128, "accumulate": 4, "divergence_factor": 9, "clip_norm": 0.1}},
        {"training": {"checkpoint_s": 1, "log_steps": 1, "weight_decay": 0.1}},
        {"branches": {"epochs": 2}},
        {"precisions": ["fp32"]},
        {"widths": {}},  # the run of exits knows nothing of them
        {"text": {"max_tokens": 99, "evaluation": ["eval"]}, "labels": {"max_tokens": 9}},
    ],
)
def test_what_may_change_leaves_the_run_the_same(values: dict[str, Any]) -> None:
    assert differences(key_of(config_of()), key_of(config_of(**values))) == ""


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"exits": [{"after": "a", "has_map": False}]}, "exits"),
        ({"training": {"epochs": 1}}, "training"),
        ({"temperature": {"start": 2.0}}, "temperature"),
        ({"mining": {}, "seed": 2}, "mining, seed"),
        ({"weighting": "controller"}, "weighting"),
    ],
)
def test_what_makes_another_run_is_named(values: dict[str, Any], named: str) -> None:
    assert differences(key_of(config_of()), key_of(config_of(**values))) == named


def test_content_counts_where_files_do_not() -> None:
    config, other = config_of(), Example(task="fact", token_ids=(1, 2, 3), num_prompt_tokens=1, source="test")
    mine = key_of(config)
    assert differences(mine, key_of(config, examples=(other,))) == "data"
    assert differences(mine, key_of(config, teachers=("else",))) == "teacher"
    assert differences(mine, key_of(config, teachers=("sha", "more"))) == "further teachers"
    assert differences(mine, key_of(config, cut="a:1,b:3")) == "cut"


def test_branches_change_the_exits_and_their_own_training_alone() -> None:
    key, settings = key_of(config_of()), BranchSettings()
    other = BranchSettings(merge="average", learning_rate_share=0.1)
    assert differences(branches_key(key, settings), branches_key(key, other)) == ""
    assert differences(exits_key(key, settings), exits_key(key, other)) == "branches"
    assert differences(exits_key(key, settings), exits_key(key, None)) == "branches"
    assert differences(branches_key(key, settings), branches_key(key, BranchSettings(epochs=3))) == "branches"


def test_a_key_of_another_version_is_no_run_of_ours() -> None:
    assert differences("0f" * 32, key_of(config_of())) == "settings or data"
    assert differences("None", key_of(config_of())) == "settings or data"
    assert differences("bench", "bench") == ""


def test_what_may_change_is_listed_by_its_name_in_the_config() -> None:
    before, after = changeable(config_of()), changeable(config_of(learning_rate={"peak": 1e-5}, data="moved"))
    assert {name for name in after if before[name] != after[name]} == {"learning_rate.peak", "data"}
