"""`--dry-run`: the plan counts what the run would do, and does none of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.distill.config import config_from
from models.distill.distiller import Distiller
from models.distill.dry_run import RunPlan, plan_run
from models.errors import ConfigError

# A byte of these words is a token or nearly; 40 answered rows of a task, ten unanswered ones.
ROWS = [{"task": task, "prompt": f"{i} {i * i} {task}", "answer": f"{i} fox"} for i in range(40) for task in ("math",)]
OPEN = [{"task": "fact", "prompt": f"who is {i * 7919} of {i**3}?"} for i in range(10)]


def plan(tiny_source: Callable[..., Path], tmp_path: Path, **values: Any) -> RunPlan:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in (*ROWS, *OPEN)))
    settings = {
        "teacher": str(tiny_source("llama")),
        "data": str(data),
        "out": str(tmp_path / "student"),
        "modules": "knowledge:2,adapter:2",
        "labels": {"max_tokens": 50},
        "training": {"epochs": 2, "batch_tokens": 128, "head_tokens": 64},
    }
    before = sorted(tmp_path.rglob("*"))
    found = plan_run(Distiller(config=config_from(settings | values, "test")))
    assert sorted(tmp_path.rglob("*")) == before
    return found


def test_the_plan_counts_and_writes_nothing(tiny_source: Callable[..., Path], tmp_path: Path) -> None:
    found = plan(tiny_source, tmp_path)
    assert found.num_unanswered == 10
    assert found.cut == "knowledge:2, adapter:2"
    assert found.exits == ("knowledge_exit behind 2 layers, copy of layers (3,), on all tasks",)
    assert found.num_trained_tokens == 2 * found.num_tokens
    # States behind 2, 3 and 4 layers in bf16, 32 likeliest tokens, one entropy.
    assert found.cache_bytes == found.num_tokens * (3 * 64 * 2 + 32 * 6 + 4)
    assert min(found.reading_s, found.training_s) > 0
    # This process has torch in it: less would be the estimate that was too low.
    assert found.memory_bytes is None or found.memory_bytes > 100 * 2**20
    text = found.text()
    assert "10 prompts have none" in text
    assert "as quiet as it was just now" in text
    assert f"{found.num_tokens:,} tokens with the teacher" in text


def test_answers_to_come_count_as_long_as_they_may_be(tiny_source: Callable[..., Path], tmp_path: Path) -> None:
    short, long = (
        plan(tiny_source, tmp_path, labels={"max_tokens": length}, text={"heldout_share": 0.0}) for length in (10, 30)
    )
    assert long.num_tokens - short.num_tokens == 10 * 20


def test_answers_that_the_teachers_take_the_place_of_are_counted(
    tiny_source: Callable[..., Path], tmp_path: Path
) -> None:
    own = plan(tiny_source, tmp_path, text={"heldout_share": 0.0})
    every = {"share_of_answered": 1.0, "max_tokens": 50}
    found = plan(tiny_source, tmp_path, text={"heldout_share": 0.0}, labels=every)
    assert found.num_unanswered == 50
    assert found.num_tokens > own.num_tokens + 40 * 30


def test_the_share_of_general_text_bounds_the_plan(tiny_source: Callable[..., Path], tmp_path: Path) -> None:
    general = [{"task": "general", "prompt": f"{i * 31} talk {i**4}", "answer": "well"} for i in range(20)]
    (tmp_path / "general.jsonl").write_text("".join(json.dumps(row) + "\n" for row in general))
    data = [str(tmp_path / "rows.jsonl"), str(tmp_path / "general.jsonl")]
    whole = plan(tiny_source, tmp_path, data=data)
    shared = plan(tiny_source, tmp_path, data=data, text={"task_share": 0.9})
    assert shared.num_tokens < whole.num_tokens
    assert plan(tiny_source, tmp_path, data=data, text={"task_share": 0.9, "max_train_tokens": 300}).num_tokens == 300


def test_exits_of_one_task_branches_and_further_teachers_are_counted(
    tiny_source: Callable[..., Path], tmp_path: Path
) -> None:
    exits = [{"after": "knowledge", "path": "all"}, {"after": "knowledge", "path": "math", "tasks": ["math"]}]
    bounds = {"task_tokens": {"math": 100, "fact": 50}}
    found = plan(tiny_source, tmp_path, exits=exits, text=bounds)
    assert found.num_exit_tokens == 2 * (150 + 100)
    branched = plan(tiny_source, tmp_path, exits=exits, text=bounds, branches={"epochs": 1})
    # A branch sees its own task: the branches of one exit together see everything once.
    assert branched.num_exit_tokens == 2 * (150 + 100) + 150
    assert branched.num_trained_tokens == 3 * 150
    taught = plan(tiny_source, tmp_path, exits=exits, text=bounds, teachers=[str(tiny_source("qwen2"))])
    # The other teacher's last state and likely tokens.
    assert taught.cache_bytes - found.cache_bytes == 150 * (64 * 2 + 32 * 6 + 4)


def test_what_the_run_would_refuse_the_plan_refuses(tiny_source: Callable[..., Path], tmp_path: Path) -> None:
    exits = [{"after": "knowledge", "tasks": ["maths"]}]
    with pytest.raises(ConfigError, match="no training text of task maths"):
        plan(tiny_source, tmp_path, exits=exits)


@pytest.mark.parametrize(
    "values",
    [
        {"adversarial": {}, "training": {"accumulate": 2, "batch_tokens": 128}},
        {"exits": [{"after": "knowledge", "copied_from": [1, 2, 3]}], "quantised": {}, "mix": {}},
    ],
)
def test_every_kind_of_training_can_be_rehearsed(
    tiny_source: Callable[..., Path], tmp_path: Path, values: dict[str, Any]
) -> None:
    assert plan(tiny_source, tmp_path, **values).training_s > 0


def test_bounds_on_the_text_bound_the_plan(tiny_source: Callable[..., Path], tmp_path: Path) -> None:
    whole = plan(tiny_source, tmp_path)
    assert plan(tiny_source, tmp_path, text={"max_train_tokens": 200}).num_tokens == 200
    bounded = plan(tiny_source, tmp_path, text={"task_tokens": {"math": 100}}).num_tokens
    assert 100 < bounded < whole.num_tokens
    both = plan(tiny_source, tmp_path, text={"task_tokens": {"math": 100, "fact": 50}})
    assert both.num_tokens == 150


def test_two_exits_behind_one_module_share_its_states(tiny_source: Callable[..., Path], tmp_path: Path) -> None:
    exits = [{"after": "knowledge", "path": "a"}, {"after": "knowledge", "path": "b", "copied_from": [2, 3]}]
    found = plan(tiny_source, tmp_path, exits=exits)
    # Behind 2, 3 and 4 layers: layer 2's own input is the first of them.
    assert found.cache_bytes == found.num_tokens * (3 * 64 * 2 + 32 * 6 + 4)
    assert len(found.exits) == 2


def test_a_cut_that_is_left_open_says_so(tiny_source: Callable[..., Path], tmp_path: Path) -> None:
    assert plan(tiny_source, tmp_path, modules="auto").cut.endswith("(or what the analysis of the layers chooses)")


def test_an_exit_behind_no_module_is_refused(tiny_source: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'x_exit' is after 'x'; exits go behind knowledge"):
        plan(tiny_source, tmp_path, exits=[{"after": "x"}])
