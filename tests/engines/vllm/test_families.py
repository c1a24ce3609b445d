"""Random students of every family, with widths and depths in one batch, served by a real vLLM."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.vllm import verify
from models.building.build import build_student
from models.building.width_file import NarrowPath, read_width_file
from models.errors import ConfigError
from models.sources.source import open_source
from models.student.folder import Student
from tests.engines.vllm.conftest import WARNINGS, Reference, Served, StartEngine
from tests.models.width_files import NUM_NEURONS, PLAN, write_tiny_widths

pytestmark = [pytest.mark.vllm, WARNINGS, pytest.mark.timeout(1200)]

SIZES = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "intermediate_size": NUM_NEURONS}
"""vLLM's attention on the CPU knows no head smaller than 32."""
FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"attention_bias": True, "tie_word_embeddings": True}),
    ("qwen2", {}),
    ("qwen3", {}),
    ("mistral", {}),
]
SHORT = NarrowPath(name="short", width="slim", modules=("knowledge", "reasoning"), exit="reasoning_exit")
FIRST = NarrowPath(name="first", width="mid", modules=("knowledge",), exit="knowledge_exit")
TIE = 5e-3

MakeStudent = Callable[..., tuple[Student, Reference]]


@pytest.fixture
def make_student(tiny_source: Any, tmp_path: Path) -> MakeStudent:
    def make(family: str, rank: int | None = None, **config: Any) -> tuple[Student, Reference]:
        folder = tiny_source(family, **{**SIZES, **config})
        source = open_source(folder)
        paths = (*PLAN.paths, SHORT, FIRST)
        widths = read_width_file(write_tiny_widths(tmp_path / "widths", source, rank=rank, paths=paths))
        build_student(
            folder,
            tmp_path / "student",
            modules="knowledge:1,reasoning:2,adapter:1",
            widths=widths.file,
            precisions=("fp32",),
        )
        student = Student.open(tmp_path / "student")
        changed = {width.name: widths.narrow_tensors(source, width.name) for width in student.manifest.widths}
        return student, Reference(source=source, student=student, changed=changed)

    return make


def check(served: Served, num_prompts: int) -> None:
    """All paths at once; every token is the reference's likeliest, or ties with it."""
    random = np.random.default_rng(7)
    prompts = [random.integers(4, 300, random.integers(2, 40)).tolist() for _ in range(num_prompts)]
    ids = {
        (path.name, number): served.submit(path.name, prompt, max_tokens=8, ignore_eos=True)
        for number, prompt in enumerate(prompts)
        for path in served.student.manifest.paths
    }
    for (path, number), id in ids.items():
        prompt, answer = prompts[number], served.tokens(id)
        assert len(answer) == 8, f"{path}: {served.finish(id).error}"
        logits = served.reference.logits(path, [*prompt, *answer])[len(prompt) - 1 : -1]
        behind = logits.max(axis=1) - logits[np.arange(8), answer]
        assert behind.max() <= TIE, f"path {path} prompt {number}: {behind}"


def assert_ids_may_come_again(served: Served) -> None:
    prompt = [9, 8, 7, 6]
    alone = {path: served.answer(path, prompt, max_tokens=6, ignore_eos=True) for path in ("full", "slim")}
    again = served.submit("full", prompt, max_tokens=6, ignore_eos=True)
    assert served.tokens(again) == alone["full"]
    served.listener.events.clear()
    served.numbers = iter([int(again.removeprefix("r"))])
    assert served.answer("slim", prompt, max_tokens=6, ignore_eos=True) == alone["slim"]


@pytest.mark.parametrize(("family", "config"), FAMILIES)
def test_each_family_answers_as_the_reference_at_every_width_and_depth(
    family: str, config: dict[str, Any], make_student: MakeStudent, start_engine: StartEngine
) -> None:
    student, reference = make_student(family, **config)
    served = start_engine(student, reference, max_context_tokens=96, step_tokens=24)
    check(served, 6)
    steps = served.steps()
    by_layers = Counter(step["num_layers"] for step in steps)
    assert set(by_layers) == {1, 3, 4}, "each depth has steps of its own"
    assert any(len(set(step["counts"])) > 2 for step in steps if step["num_layers"] == 4), "widths share steps"
    assert all(step["sorted"] for step in steps)
    assert served.engine.audit(60) == []
    check(served, 1)  # vLLM has forgotten them
    assert_ids_may_come_again(served)


def test_compiled_steps_of_widths_that_differ_by_little_answer_as_the_reference(
    make_student: MakeStudent, start_engine: StartEngine
) -> None:
    student, reference = make_student("qwen3", rank=2)
    options = {"enforce_eager": False}
    served = start_engine(student, reference, options, max_context_tokens=96, step_tokens=24)
    check(served, 6)
    assert {step["num_layers"] for step in served.steps()} == {1, 3, 4}


def test_options_of_vllm_that_are_wrong_are_refused(make_student: MakeStudent, start_engine: StartEngine) -> None:
    student, reference = make_student("llama")
    with pytest.raises(ConfigError, match=r"vllm\.gpu_memory_utilisation: vLLM has no such option; did you mean gpu_m"):
        start_engine(student, reference, {"gpu_memory_utilisation": 0.5}, max_context_tokens=96)
    with pytest.raises(ConfigError, match=r"vllm\.scheduler_cls cannot be set: paths need fenhe's own"):
        start_engine(student, reference, {"scheduler_cls": "x"}, max_context_tokens=96)


def test_verify_compares_every_path_with_plain_torch(
    make_student: MakeStudent, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    student, _ = make_student("llama", max_position_embeddings=256)
    assert verify.main([str(student.folder)]) == 0
    assert "64 of 64 answers are the reference's" in capsys.readouterr().out
    monkeypatch.setattr(verify, "narrow_tensors", lambda student, path: {})
    answers = verify.Answers()
    for path in student.manifest.paths:
        answers.tokens |= {f"{path.name} 0": [7] * verify.NUM_TOKENS}
    assert len(verify.find_differences(student, answers, [[5, 6]], 5e-3)) == len(student.manifest.paths)
