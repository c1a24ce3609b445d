"""Our own subject on a tiny student: the figures come from real engine and runner work."""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bench.engines.depth_steps import prefix_paths, uniform_steps
from bench.engines.figures import mixed_over_modules
from bench.engines.ours import Fenhe, gaps_between
from bench.losses import nats_of
from bench.protocol import Generate, MixedStep, Score, Setup, Stall, StepTimes
from bench.subject import SubjectAbsent
from models.building.build import build_student
from models.student.folder import Student


@pytest.fixture
def folder(tmp_path: Path, tiny_source: object) -> Path:
    assert callable(tiny_source)
    out = tmp_path / "student"
    build_student(tiny_source("llama"), out, modules="first:2,second:2", precisions=("fp32",))
    return out


@pytest.fixture
def fenhe(folder: Path) -> Iterator[Fenhe]:
    subject = Fenhe()
    subject.open(Setup(student=str(folder), num_threads=1, precision="fp32"))
    yield subject
    subject.close()


def test_generate_counts_every_token_of_every_sequence(fenhe: Fenhe) -> None:
    answer = fenhe.generate(Generate(prompts=((5, 6, 7), (8, 9)), num_tokens=4))
    assert (answer.num_prompt_tokens, answer.num_tokens) == (5, 8)
    assert 0 < answer.first_s < answer.total_s


def test_stall_reports_gaps_on_both_sides_of_the_arrival(fenhe: Fenhe) -> None:
    """On a busy machine a stream may end before the intruder gets in: one attempt in ten is enough."""
    task = Stall(prompt=(5, 6), intruder=tuple(range(4, 40)), num_quiet_tokens=4)
    answers = [fenhe.stall(task) for _ in range(10)]
    assert all(len(answer.quiet_gaps_s) >= 3 for answer in answers)
    assert any(answer.loaded_gaps_s for answer in answers)
    assert all(answer.intruder_first_s > 0 for answer in answers)


def test_score_is_the_same_side_by_side_and_alone_and_equals_the_reference(folder: Path, fenhe: Fenhe) -> None:
    from models.reference import ReferenceDecoder
    from models.sources.source import open_source

    texts = ((5, 6, 7, 8, 9), (10, 11), (12, 13, 14, 15))
    together = fenhe.score(Score(texts=texts, num_rows=2))
    alone = fenhe.score(Score(texts=texts, num_rows=1))
    assert together.num_tokens == (4, 1, 3)
    assert together.nats == pytest.approx(alone.nats, rel=1e-6)
    source = next(path for path in folder.parent.iterdir() if path.name.startswith("tiny-"))
    reference = ReferenceDecoder(open_source(source))
    expected = [nats_of(np.asarray(reference.forward(list(text)))[:-1], text[1:]) for text in texts]
    assert together.nats == pytest.approx(expected, rel=1e-4)


def test_mixed_step_times_every_step_its_formula_needs(fenhe: Fenhe) -> None:
    times = fenhe.mixed_step(MixedStep(prompt=(5, 6, 7), num_rows=4, repeats=2))
    assert (len(times.paths), times.rows_per_path) == (2, 2)
    assert times.uniform_s.keys() == uniform_steps(times.paths, 2, 3).keys()
    assert min(times.mixed_s, *times.uniform_s.values()) > 0
    # What a module costs is a difference of two times: on a busy machine, in two repeats, of either sign.
    assert math.isfinite(mixed_over_modules(times))


def test_uniform_steps_cover_the_formula_at_any_number_of_depths() -> None:
    for depths in (1, 2, 3, 5):
        paths = tuple(f"p{i}" for i in range(depths))
        steps = uniform_steps(paths, 3, 7)
        times = StepTimes(paths=paths, rows_per_path=3, mixed_s=1.0, uniform_s=dict.fromkeys(steps, 1.0))
        assert mixed_over_modules(times) == 1.0
    assert next(len(step.decode) for step in steps.values()) == 15


def test_prefix_paths_go_from_the_shallowest_to_the_full_one(folder: Path) -> None:
    student = Student.open(folder)
    paths = [student.manifest.path(name).modules for name in prefix_paths(student)]
    assert paths == [("first",), ("first", "second")]


def test_no_student_is_absent() -> None:
    with pytest.raises(SubjectAbsent, match="--student"):
        Fenhe().open(Setup(num_threads=1))


def test_gaps_between_are_those_that_overlap_the_time() -> None:
    moments = [0.0, 1.0, 3.0, 4.0, 9.0]
    assert gaps_between(moments, 1.5, 3.5) == (2.0, 1.0)
    assert gaps_between(moments, 0.0, 9.0) == tuple(b - a for a, b in itertools.pairwise(moments))


def test_nats_of_uniform_logits_is_the_log_of_the_vocabulary() -> None:
    logits = np.full((3, 8), 400.0, dtype=np.float32)
    assert nats_of(logits, [0, 3, 7]) == pytest.approx(3 * np.log(8))
