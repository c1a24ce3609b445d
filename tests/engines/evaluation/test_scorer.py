"""Scores of whole texts against plain log-probabilities of the torch reference."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from engines.evaluation.scorer import PathRuns, Scorer, distribution_of, kl_from, stages_of
from engines.onnx.plan import PrecisionPlan
from engines.onnx.runner import OnnxRunner, RunnerLimits
from models.evaluation.rows import Passage
from models.evaluation.scores import PathHead
from models.student.folder import Student
from models.student.manifest import HeadKind, Manifest

Double = npt.NDArray[np.float64]

PATHS = ("knowledge", "reasoning", "full")
NUM_LAYERS = {"knowledge": 1, "reasoning": 3, "full": 4}
PROMPT, ANSWER = (1, 40, 300, 7), (7, 120, 319, 64, 5)
PASSAGE = Passage(
    dataset="d",
    task="fact",
    token_ids=(*PROMPT, *ANSWER),
    boundary=4,
    branch=6,
    branch_end=8,
    branches=((11, 12, 13), (14,), (15, 16)),
)


@pytest.fixture
def tiny(tiny_student: Callable[..., Any]) -> Any:
    return tiny_student("llama")


def exact(path: str) -> PathHead:
    return PathHead(path, "exact")


def runs_of(student: Student, manifest: Manifest, paths: tuple[str, ...] = PATHS) -> PathRuns:
    limits = RunnerLimits(num_slots=3, capacity_tokens=64, num_threads=1)
    runner = OnnxRunner(student, PrecisionPlan(many="fp32"), limits)
    for stage in stages_of(manifest, paths):
        runner.load(stage)
    return PathRuns(runner, manifest, paths)


def log_probabilities(reference: Any, ids: tuple[int, ...], num_layers: int) -> Double:
    """Of every position, from the torch decoder."""
    logits = np.asarray(reference.logits(reference.layers(reference.embed(ids), 0, num_layers)), np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: Double = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def nats_of(reference: Any, ids: tuple[int, ...], first: int, num_layers: int) -> float:
    """Summed over the tokens from `first` on."""
    log_p = log_probabilities(reference, ids[:-1], num_layers)
    return -float(sum(log_p[at - 1, ids[at]] for at in range(first, len(ids))))


def test_scores_are_those_of_the_reference(tiny: Any) -> None:
    scores = Scorer(runs_of(tiny.student, tiny.student.manifest), "full").score(PASSAGE)
    full = log_probabilities(tiny.reference, PASSAGE.token_ids[:-1], 4)[3:]
    for path in PATHS:
        mine = log_probabilities(tiny.reference, PASSAGE.token_ids[:-1], NUM_LAYERS[path])[3:]
        score = scores[exact(path)]
        assert score.num_tokens == 5
        assert score.nats == pytest.approx(nats_of(tiny.reference, PASSAGE.token_ids, 4, NUM_LAYERS[path]), rel=1e-3)
        assert score.kl == pytest.approx(float((np.exp(full) * (full - mine)).sum()), rel=1e-3, abs=1e-3)
        assert score.num_agreed == int((full.argmax(axis=1) == mine.argmax(axis=1)).sum())


def test_choices_are_scored_as_if_each_were_the_text(tiny: Any) -> None:
    scores = Scorer(runs_of(tiny.student, tiny.student.manifest), "full").score(PASSAGE)
    ends = (PASSAGE.token_ids[6:8], *PASSAGE.branches)
    for path in PATHS:
        expected = [
            nats_of(tiny.reference, (*PASSAGE.token_ids[:6], *end), 6, NUM_LAYERS[path]) / len(end) for end in ends
        ]
        assert scores[exact(path)].choice_nats == pytest.approx(expected, rel=1e-3)


def test_a_blind_answer_is_scored_behind_the_other_question_alone(tiny: Any) -> None:
    scorer = Scorer(runs_of(tiny.student, tiny.student.manifest), "full")
    other = (9, 200, 33)
    scores = scorer.score(replace(PASSAGE, other_question=other))
    for path in PATHS:
        expected = nats_of(tiny.reference, (*other, *ANSWER), len(other), NUM_LAYERS[path])
        assert scores[exact(path)].blind_nats == pytest.approx(expected, rel=1e-3)
        assert replace(scores[exact(path)], blind_nats=None) == scorer.score(PASSAGE)[exact(path)]


def test_the_full_path_is_exactly_itself(tiny: Any) -> None:
    score = Scorer(runs_of(tiny.student, tiny.student.manifest), "full").score(PASSAGE)[exact("full")]
    assert (score.kl, score.num_agreed) == (0.0, 5)


def test_a_long_answer_is_scored_in_pieces(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = runs_of(tiny.student, tiny.student.manifest)
    whole = Scorer(runs, "full").score(PASSAGE)
    monkeypatch.setattr("engines.evaluation.scorer.HEAD_ROWS", 1)
    pieces = Scorer(runs, "full").score(PASSAGE)
    for path in PATHS:
        assert pieces[exact(path)].nats == pytest.approx(whole[exact(path)].nats, rel=1e-5)
        assert pieces[exact(path)].choice_nats == pytest.approx(whole[exact(path)].choice_nats, rel=1e-5)


def test_another_runner_can_be_the_reference(tiny: Any, tiny_student: Callable[..., Any]) -> None:
    """What the runs are compared with is its full path, and nothing else of it."""
    own = runs_of(tiny.student, tiny.student.manifest, ("knowledge",))
    reference = runs_of(tiny.student, tiny.student.manifest, ("full",))
    apart = Scorer(own, "full", reference).score(PASSAGE)[exact("knowledge")]
    together = Scorer(runs_of(tiny.student, tiny.student.manifest), "full").score(PASSAGE)[exact("knowledge")]
    assert apart.kl == pytest.approx(together.kl, rel=1e-4)
    assert apart.num_agreed == together.num_agreed


class TwoHeads:
    """A runner with a cheap head that halves the exact one's logits."""

    def __init__(self, runner: OnnxRunner) -> None:
        self._runner = runner
        self.embed = runner.embed
        self.run_stage = runner.run_stage

    def run_head(self, normed: npt.NDArray[np.float32], head: HeadKind = "exact") -> npt.NDArray[np.float32]:
        logits = self._runner.run_head(normed)
        return logits if head == "exact" else logits / np.float32(2)


def halved_nats(reference: Any, ids: tuple[int, ...], first: int, num_layers: int) -> float:
    halves = np.asarray(reference.logits(reference.layers(reference.embed(ids[:-1]), 0, num_layers)), np.float64) / 2
    log_p = halves - np.log(np.exp(halves).sum(axis=1, keepdims=True))
    return -float(sum(log_p[at - 1, ids[at]] for at in range(first, len(ids))))


def test_every_head_reads_the_same_states_of_every_path(tiny: Any) -> None:
    student = tiny.student
    single = runs_of(student, student.manifest)
    runs = PathRuns(TwoHeads(single._runner), student.manifest, PATHS, ("exact", "cheap"))  # type: ignore[arg-type]
    passage = replace(PASSAGE, other_question=(9, 200, 33))
    scores, alone = Scorer(runs, "full").score(passage), Scorer(single, "full").score(passage)
    assert list(scores) == [PathHead(path, head) for head in ("exact", "cheap") for path in PATHS]
    for path in PATHS:
        assert scores[exact(path)] == alone[exact(path)]
        cheap, layers = scores[PathHead(path, "cheap")], NUM_LAYERS[path]
        assert cheap.nats == pytest.approx(halved_nats(tiny.reference, PASSAGE.token_ids, 4, layers), rel=1e-3)
        blind = halved_nats(tiny.reference, (9, 200, 33, *ANSWER), 3, layers)
        assert cheap.blind_nats == pytest.approx(blind, rel=1e-3)
        ends = (PASSAGE.token_ids[6:8], *PASSAGE.branches)
        expected = [halved_nats(tiny.reference, (*PASSAGE.token_ids[:6], *end), 6, layers) / len(end) for end in ends]
        assert cheap.choice_nats == pytest.approx(expected, rel=1e-3)
    full = scores[PathHead("full", "cheap")]
    assert full.num_full_agreed == 5  # halving changes no order
    assert full.full_kl is not None
    assert full.full_kl > 0


def test_what_is_not_compared_has_the_same_nats_and_no_kl(tiny: Any) -> None:
    scorer = Scorer(runs_of(tiny.student, tiny.student.manifest), "full")
    compared, plain = scorer.score(PASSAGE), scorer.score(PASSAGE, is_compared=False)
    for column, score in plain.items():
        assert score.nats == pytest.approx(compared[column].nats, rel=1e-6)
        assert score.choice_nats == pytest.approx(compared[column].choice_nats, rel=1e-6)
        assert (score.kl, score.num_agreed, score.full_kl, score.num_full_agreed) == (None,) * 4


def test_a_text_without_a_prompt_is_scored_from_its_second_token_on(tiny: Any) -> None:
    nats = Scorer(runs_of(tiny.student, tiny.student.manifest), "full").text_nats((*PROMPT, *ANSWER))
    for path in PATHS:
        expected = nats_of(tiny.reference, (*PROMPT, *ANSWER), 1, NUM_LAYERS[path])
        assert nats[exact(path)] == pytest.approx(expected, rel=1e-3)


def test_distributions_and_kl_by_hand() -> None:
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], np.float32)) + np.float32(7)
    other = np.log(np.array([[0.25, 0.5, 0.25], [0.1, 0.1, 0.8]], np.float32))
    here, there = distribution_of(logits), distribution_of(other)
    assert here.nats((0, 1), (0, 2)) == pytest.approx([-np.log(0.5), -np.log(0.8)], abs=1e-5)
    assert here.likeliest.tolist() == [0, 2]
    expected = 0.5 * np.log(2) + 0.25 * np.log(0.5)
    assert kl_from(here, there) == pytest.approx([expected, 0.0], abs=1e-5)
