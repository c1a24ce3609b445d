"""From a student folder to a serving engine: settings are checked against the student, and its text is the model's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.build import build_engine, build_runner, capacity_tokens
from engines.config import EngineConfig
from engines.loop.module_engine import ModuleEngine
from engines.onnx.plan import PrecisionPlan
from engines.sequence import FinishReason, GenerationRequest, SamplingParams
from models.building.build import build_student
from models.errors import ConfigError, WeightsError
from models.student.folder import HEAD, Student
from tests.engines.cheap_heads import with_cheap_head
from tests.models.greedy_text import NUM_TOKENS, chat_ids


def generate(engine: ModuleEngine, prompts: dict[str, list[int]], make_listener: Any, path: str = "full") -> Any:
    """Run all prompts at once to their end, greedily."""
    listener = make_listener()
    engine.start(listener.publish)
    try:
        for id, ids in prompts.items():
            sampling = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True)
            engine.submit(GenerationRequest(id=id, prompt_token_ids=tuple(ids), path=path, sampling=sampling))
        for id in prompts:
            assert listener.finish(id).reason is FinishReason.LENGTH
    finally:
        engine.stop(0)
    return listener


def test_engine_greedy_text_of_the_default_student_equals_transformers(
    default_gguf: Path, default_greedy_tokens: dict[str, list[int]], tmp_path: Path, make_listener: Any
) -> None:
    build_student(default_gguf, tmp_path / "student", precisions=("fp32",))
    student = Student.open(tmp_path / "student")
    prompts = {prompt: chat_ids(student.tokenizer, prompt) for prompt in default_greedy_tokens}
    assert len(prompts) >= 20
    engine = build_engine(student, EngineConfig(precision="fp32", max_running=8, max_context_tokens=256))
    listener = generate(engine, prompts, make_listener)
    for prompt, expected in default_greedy_tokens.items():
        assert listener.tokens(prompt) == expected, prompt
        assert listener.text(prompt) == student.tokenizer.decode(expected), prompt


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_engine_greedy_tokens_equal_the_reference(tiny_student: Any, make_listener: Any, family: str) -> None:
    tiny = tiny_student(family)
    prompts = {str(n): [(7 * n + 3 * i) % 300 + 3 for i in range(5 + 9 * n)] for n in range(6)}
    engine = build_engine(tiny.student, EngineConfig(precision="fp32", max_running=3, busy_step_tokens=7))
    listener = generate(engine, prompts, make_listener)
    for id, ids in prompts.items():
        assert listener.tokens(id) == tiny.reference.generate_greedy(ids, NUM_TOKENS)


def test_engine_names_its_precision_and_student(tiny_student: Any) -> None:
    engine = build_engine(tiny_student("llama").student, EngineConfig(precision="fp32"))
    status = engine.status()
    assert (status.variant, status.student) == ("fp32", tiny_student("llama").student.manifest.name)
    assert not status.is_ready


def test_engine_on_a_damaged_graph_becomes_unhealthy_and_tells_its_waiters(
    tiny_source: Any, tmp_path: Path, make_listener: Any
) -> None:
    build_student(tiny_source("llama"), tmp_path / "student", precisions=("fp32",))
    student = Student.open(tmp_path / "student")
    graph = student.graph("fp32", "adapter")
    graph.write_bytes(b"\0" * graph.stat().st_size)
    engine, listener = build_engine(student, EngineConfig(precision="fp32")), make_listener()
    sampling = SamplingParams(max_tokens=2)
    engine.submit(GenerationRequest(id="a", prompt_token_ids=(5,), path="full", sampling=sampling))
    engine.start(listener.publish)
    error = str(listener.finish("a").error)
    assert "the student cannot be loaded" in error
    assert graph.name not in error
    engine.stop(0)
    status = engine.status()
    assert not status.is_healthy
    assert f"{graph} is damaged" in str(status.error_detail)
    assert [path.is_servable for path in status.paths if path.is_default] == [False]


def test_engine_loads_what_is_whole_before_it_finds_damage(tiny_source: Any, tmp_path: Path) -> None:
    build_student(tiny_source("llama"), tmp_path / "student", precisions=("fp32", "w8a8"))
    student = Student.open(tmp_path / "student")
    for name in ("adapter.fp32.weights", "knowledge.w8a8.weights"):  # the second one is never loaded
        file = student.folder / name
        file.write_bytes(bytes(file.stat().st_size))
    runner = build_runner(student, EngineConfig(precision="fp32", max_running=2))
    *whole, damaged, _ = student.manifest.stage_order()
    assert damaged == "adapter"
    for stage in (HEAD, *whole):
        runner.load(stage)
    with pytest.raises(WeightsError, match=r"adapter\.fp32\.weights is damaged"):
        runner.load(damaged)


def test_build_refuses_an_embedding_that_is_damaged(tiny_source: Any, tmp_path: Path) -> None:
    build_student(tiny_source("llama"), tmp_path / "student", precisions=("fp32",))
    file = tmp_path / "student" / "embedding.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(WeightsError, match=r"embedding\.npy is damaged.*fenhe build"):
        build_engine(Student.open(tmp_path / "student"), EngineConfig(precision="fp32"))


def test_build_refuses_wrong_settings_together(tiny_student: Any) -> None:
    with pytest.raises(ConfigError, match=r"max_running.*num_threads"):
        build_engine(tiny_student("llama").student, EngineConfig(max_running=0, num_threads=0))


def test_build_refuses_a_precision_the_student_has_not(tiny_student: Any) -> None:
    with pytest.raises(ConfigError, match="no precision 'int8', only fp32"):
        build_engine(tiny_student("llama").student, EngineConfig(precision="int8"))


def test_capacity_is_the_students_unless_less_is_asked_for(tiny_student: Any) -> None:
    student = tiny_student("llama").student
    assert capacity_tokens(student, EngineConfig()) == 128
    assert capacity_tokens(student, EngineConfig(max_context_tokens=100)) == 100
    with pytest.raises(ConfigError, match="the student supports 128 positions at most"):
        build_engine(student, EngineConfig(precision="fp32", max_context_tokens=129))


def test_build_runner_loads_nothing_by_itself(tiny_student: Any) -> None:
    runner = build_runner(tiny_student("llama").student, EngineConfig(precision="fp32", max_running=2))
    assert not runner._stages
    assert not runner._heads


def test_build_native_without_a_folder_for_operators_is_refused(tiny_student: Any) -> None:
    student = tiny_student("llama", ("w8a8-native",)).student
    with pytest.raises(ConfigError, match="install a C compiler"):
        build_engine(student, EngineConfig(precision="w8a8-native", native_folder=None))


def test_build_of_a_missing_graph_is_refused_by_open(tiny_source: Any, tmp_path: Path) -> None:
    build_student(tiny_source("llama"), tmp_path / "student", precisions=("fp32",))
    (tmp_path / "student" / "head.fp32.onnx").unlink()
    with pytest.raises(WeightsError, match="head"):
        Student.open(tmp_path / "student")


def test_engine_uses_the_cheap_head_that_the_plan_has(
    tiny_student: Any, tmp_path: Path, make_listener: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    favourite = 7
    monkeypatch.setattr(
        "tests.engines.cheap_heads.errors", lambda size: 1e4 * (np.arange(size) == favourite).astype(np.float32)
    )
    student = with_cheap_head(tiny_student("llama").student, tmp_path / "student")
    plan = PrecisionPlan(many="fp32", cheap_head=True)
    monkeypatch.setattr("engines.build.choose_plan", lambda *_: plan)
    engine = build_engine(student, EngineConfig(precision="fp32", max_running=2))
    assert engine.status().head == "cheap"
    assert generate(engine, {"a": [5, 6, 7, 8]}, make_listener).tokens("a") == [favourite] * NUM_TOKENS
    assert engine.status().stage_rows["cheap_head"] == NUM_TOKENS
    assert "head" not in engine.status().stage_rows
