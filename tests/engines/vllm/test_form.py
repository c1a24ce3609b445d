"""What vLLM is told of a student, and which students it is not told of."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from engines.config import EngineConfig
from engines.vllm.form import PathForm, ServedForm, form_in, served_form
from engines.vllm.options import nested, option_problems, student_form
from models.building.build import build_student
from models.errors import ConfigError
from models.sources.source import open_source
from models.student.folder import Student
from models.student.manifest import Exit, Manifest, StudentPath
from tests.models.width_files import NUM_NEURONS, write_tiny_widths


@pytest.fixture
def manifest(fake_student: Student) -> Manifest:
    return fake_student.manifest


def test_form_of_depths_counts_their_layers(manifest: Manifest) -> None:
    form = served_form(manifest)
    assert form.default_path == "full"
    assert {name: path.num_layers for name, path in form.paths.items()} == {"knowledge": 2, "reasoning": 3, "full": 4}
    assert form.path_of({"fenhe_path": "knowledge"}) == PathForm(num_layers=2)
    assert form.path_of(None) == form.paths["full"]
    with pytest.raises(KeyError):
        form.path_of({"fenhe_path": "other"})


def test_form_of_widths_has_their_neurons(tiny_source: Any, tmp_path: Path) -> None:
    folder = tiny_source("llama", intermediate_size=NUM_NEURONS)
    widths = write_tiny_widths(tmp_path / "widths", open_source(folder))
    build_student(folder, tmp_path / "student", widths=widths, precisions=("fp32",))
    form = student_form(Student.open(tmp_path / "student"), EngineConfig())
    assert {name: path.width for name, path in form.paths.items()} == {"wide": 1, "middle": 2, "slim": 3, "full": 0}
    blocks = form.layer_widths(1, NUM_NEURONS).blocks
    assert [(block.first, block.end, block.entry) for block in blocks] == [
        (0, 64, 3),
        (64, 128, 2),
        (128, 192, 1),
        (192, 256, 0),
    ]
    assert form.head is None


def test_form_survives_a_configuration_file(manifest: Manifest) -> None:
    class Config:
        fenhe = msgspec.json.decode(msgspec.json.encode(served_form(manifest)))

    assert form_in(Config()) == served_form(manifest)
    with pytest.raises(ConfigError, match="fenhe export --format vllm"):
        form_in(object())


CANNOT = [
    ({"exits": {"num_blocks": 2}}, "its exit 'knowledge_exit' has layers of its own"),
    ({"exits": {"has_map": True}}, "its exit 'knowledge_exit' has a linear map"),
    ({"modules": ("reasoning",)}, "it leaves layers out before its last one"),
    ({"modules": ("knowledge", "adapter")}, "it leaves layers out before its last one"),
]


@pytest.mark.parametrize(("change", "said"), CANNOT)
def test_other_forms_are_refused_by_name(manifest: Manifest, change: dict[str, Any], said: str) -> None:
    exits: list[Exit] = [
        msgspec.structs.replace(exit, **change.get("exits", {})) if exit.name == "knowledge_exit" else exit
        for exit in manifest.exits
    ]
    path = next(path for path in manifest.paths if path.name == "knowledge")
    modules = change.get("modules", path.modules)
    other = StudentPath(name="odd", modules=modules, exit="knowledge_exit")
    changed = msgspec.structs.replace(manifest, exits=tuple(exits), paths=(other, manifest.full_path))
    with pytest.raises(ConfigError, match=f"cannot run path 'odd' of student 'fake': {said}"):
        served_form(changed)


def test_a_student_without_fp32_is_refused(tiny_source: Any, tmp_path: Path) -> None:
    build_student(tiny_source("llama"), tmp_path / "student", precisions=("int8",))
    with pytest.raises(ConfigError, match="has no fp32 weights"):
        student_form(Student.open(tmp_path / "student"), EngineConfig())


def test_a_cheap_head_that_is_not_there_is_refused_where_it_is_demanded(tiny_source: Any, tmp_path: Path) -> None:
    build_student(tiny_source("llama"), tmp_path / "student", precisions=("fp32",))
    student = Student.open(tmp_path / "student")
    assert student_form(student, EngineConfig(head="auto")).head is None
    with pytest.raises(ConfigError, match="has no cheap head"):
        student_form(student, EngineConfig(head="cheap"))


def test_options_that_vllm_does_not_have_name_the_nearest() -> None:
    known = {"tensor_parallel_size", "dtype", "quantization", "compilation_config", "worker_cls", "max_model_len"}
    options = {"tensor_parallel_sise": 2, "worker_cls": "x", "dtype": "bfloat16", "compilation_config.mode": 0}
    said = [str(problem) for problem in option_problems(options, known)]
    assert said == [
        "vllm.tensor_parallel_sise: vLLM has no such option; did you mean tensor_parallel_size?",
        "vllm.worker_cls cannot be set: paths need fenhe's own",
    ]
    assert option_problems({"max_model_len": 5}, known)[0].said.endswith("set engine.max_context_tokens")


def test_dotted_options_are_tables() -> None:
    assert nested({"a.b": 1, "a.c.d": 2, "e": 3}) == {"a": {"b": 1, "c": {"d": 2}}, "e": 3}


def test_form_is_the_same_read_as_written(manifest: Manifest) -> None:
    form = served_form(manifest)
    assert msgspec.json.decode(msgspec.json.encode(form), type=ServedForm) == form
