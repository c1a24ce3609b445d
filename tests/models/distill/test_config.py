"""A run's settings: three lines are enough, and every mistake is named."""

from pathlib import Path
from typing import Any

import pytest

from models.distill import config as config_module
from models.distill.config import DistillConfig, ExitConfig, config_from, read_config
from models.errors import ConfigError

RECIPE = Path(config_module.__file__).parent / "recipes" / "smollm2-135m.toml"
THREE_LINES = 'teacher = "model.gguf"\ndata = "rows"\nout = "student"\n'
STAGES = {"name": "a", "share": 1.0, "weights": {"soft_target_kl": 1.0}}
TEXT_ALONE = STAGES | {"weights": {"task_cross_entropy": 1.0}}
SOFT_EXIT = {"after": "a", "losses": {"jensen_shannon": 1.0}}
NEEDED: dict[str, dict[str, Any]] = {"exits": {"after": "knowledge"}, "stages": STAGES, "learning_rate": {"peak": 1e-3}}


def write(folder: Path, more: str = "") -> Path:
    file = folder / "run.toml"
    file.write_text(THREE_LINES + more)
    return file


def changed(**values: Any) -> DistillConfig:
    return config_from({"teacher": "model.gguf", "data": "rows", "out": "student", **values}, "here")


def test_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    file = write(tmp_path)
    plain = read_config(file)
    file.write_text(file.read_text(), encoding="utf-8-sig")
    assert read_config(file) == plain


def test_three_lines_are_a_whole_config(tmp_path: Path) -> None:
    config = read_config(write(tmp_path))
    assert (config.teacher, config.data_settings.files, config.out) == ("model.gguf", ("rows",), "student")
    assert (config.modules, config.exits, config.work_folder.path) == ("auto", (), Path("student.work"))


def test_the_shipped_recipe_reads() -> None:
    config = read_config(RECIPE)
    assert config.teacher == "smollm2-135m"
    assert config.exits
    assert {exit.after for exit in config.exits} < {part.partition(":")[0] for part in config.modules.split(",")}


def test_data_may_be_several_and_the_task_goes_to_the_text(tmp_path: Path) -> None:
    config = changed(data=["a", "b"], task="math", work="elsewhere", text={"max_tokens": 99})
    assert config.data_settings.files == ("a", "b")
    assert (config.data_settings.task, config.data_settings.max_tokens) == ("math", 99)
    assert config.work_folder.path == Path("elsewhere")


def test_an_exit_is_called_like_its_path_and_that_like_its_module() -> None:
    assert ExitConfig(after="knowledge").exit_name == "knowledge_exit"
    assert ExitConfig(after="knowledge", path="math").exit_name == "math_exit"
    assert ExitConfig(after="knowledge", path="math", name="shallow").exit_name == "shallow"


def test_an_unknown_key_at_the_top_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"here: there is no setting teachr; there are .*teacher"):
        changed(teachr="x")


@pytest.mark.parametrize("table", sorted(config_module._TABLES))
def test_an_unknown_key_in_a_table_is_refused_by_its_name(table: str) -> None:
    values = {**NEEDED.get(table, {}), "colour": 1}
    with pytest.raises(ConfigError, match=rf"here: there is no setting {table}\.colour; there are "):
        changed(**{table: [values] if table in {"exits", "stages"} else values})


def test_every_table_of_the_config_is_held_against_its_keys() -> None:
    assert config_module._TABLES.keys() >= NEEDED.keys()
    for table in config_module._TABLES:
        value = NEEDED.get(table, {})
        changed(**{table: [value] if table in {"exits", "stages"} else value})


def test_every_problem_is_reported_together(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        'precisions = ["int5"]\n[training]\nepochs = 0\nprompt_weight = 2\n[mining]\nstrength = 3\n[adversarial]\n'
        'radius = 0\n[[exits]]\nafter = "a"\npath = "a:b"\nlosses = { l2 = 1 }\n',
    )
    with pytest.raises(ConfigError) as caught:
        read_config(file)
    text = str(caught.value)
    assert text.startswith(f"{file}: ")
    wanted = ("'int5'", "training.epochs", "training.prompt_weight", "mining.strength", "adversarial.radius")
    assert all(word in text for word in (*wanted, "'a:b'", "'l2' is not a loss"))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"training": {"head_tokens": -1}}, "training.head_tokens must not be negative"),
        ({"training": {"divergence_factor": 1}}, "divergence_factor must be above 1"),
        ({"mining": {"drop_share": 1}}, "mining.drop_share"),
        ({"quantised": {"precision": "fp32"}}, "quantised.precision: 'fp32' is none of"),
        ({"quantised": {"share": 0}}, "quantised.share"),
        ({"text": {"max_tokens": 3}}, "max_tokens must be at least 16"),
        ({"labels": {"temperature": -1}}, "temperature"),
        ({"learning_rate": {"peak": 0}}, "peak must be above 0"),
        ({"stages": [STAGES | {"share": 0.5}]}, "add up to 1"),
        ({"exits": [{"after": "a"}, {"after": "a"}]}, "two exits are called 'a_exit'"),
        ({"training": {"soft_targets": "top_k"}, "teachers": ["other"]}, "is for one teacher"),
        (
            {"training": {"soft_targets": "top_k"}, "stages": [STAGES | {"weights": {"reverse_kl": 1.0}}]},
            "cannot give reverse_kl",
        ),
        ({"transfer": "sequence", "teachers": ["other"]}, "stage 'soft_targets': .* has no soft targets"),
        ({"transfer": "sequence", "stages": [TEXT_ALONE]}, "`teachers`, which names none"),
        ({"transfer": "sequence", "stages": [TEXT_ALONE], "teachers": ["a", "b"]}, "`teachers`, which names 2"),
        (
            {"transfer": "sequence", "stages": [TEXT_ALONE], "teachers": ["a"], "exits": [SOFT_EXIT]},
            "exit 'a_exit': .* has no soft targets and so no jensen_shannon",
        ),
        (
            {"training": {"soft_targets": "top_k"}, "exits": [SOFT_EXIT]},
            "exit 'a_exit': .* cannot give jensen_shannon",
        ),
        ({"exits": [{"after": "a", "losses": {"hidden_mse": 0}}]}, "'a_exit': losses must give some loss more than 0"),
        (
            {"exits": [{"after": "a", "has_map": False, "losses": {"module_alignment": 1, "hidden_mse": 1}}]},
            "'a_exit': it learns nothing by module_alignment of its losses",
        ),
        (
            {
                "exits": [{"after": "a", "copied_from": []}],
                "stages": [STAGES | {"weights": {"attention_transfer": 1.0}}],
            },
            "'a_exit': it learns nothing by attention_transfer of its stage 'a'",
        ),
        ({"seed": "one"}, "seed"),
        ({"ensemble": "vote"}, "ensemble"),
        ({"training": 4}, "training"),
        ({"data": []}, "names no training file"),
    ],
)
def test_wrong_values_are_named(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        changed(**values)


def test_a_key_that_is_missing_is_named() -> None:
    with pytest.raises(ConfigError, match="teacher"):
        config_from({"data": "rows", "out": "student"}, "here")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml does not exist; three lines do"):
        read_config(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match=r"run\.toml cannot be read.*line 4"):
        read_config(write(tmp_path, "modules =\n"))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path)
