"""Divergence, on plain numbers: both losses have to grow, and a new phase begins anew."""

import pytest

from models.distill.run import divergence
from models.distill.run.divergence import begin_phase, diverges, untempered
from models.distill.run.progress import Progress


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divergence, "SETTLED_STEPS", 2)
    monkeypatch.setattr(divergence, "SMOOTHING", 0.0)


def judged(*losses: tuple[float, float]) -> list[bool]:
    progress, found = Progress(), []
    for loss in losses:
        found.append(diverges(progress, "a", loss, factor=3.0))
        progress.step += 1
    return found


def test_diverges_when_both_losses_are_far_above_their_best() -> None:
    assert judged((9, 9), (1, 1), (1, 1), (2.9, 2.9), (3.1, 3.1)) == [False, False, False, False, True]


def test_diverges_leaves_the_first_steps_alone() -> None:
    assert judged((1, 1), (100, 100), (100, 100), (100, 100)) == [False] * 4


@pytest.mark.parametrize("grown", [(9.0, 1.0), (1.0, 9.0)])
def test_diverges_does_not_mind_what_the_temperature_does(grown: tuple[float, float]) -> None:
    assert judged((1, 1), (1, 1), (1, 1), grown) == [False] * 4


def test_begin_phase_forgets_what_was_smoothed_and_best() -> None:
    progress = Progress(step=7, phase="a", smoothed={"x": (1.0, 1.0)}, best={"x": (1.0, 1.0)})
    begin_phase(progress, "a")
    assert progress.smoothed
    begin_phase(progress, "b")
    assert progress == Progress(step=7, phase="b", phase_step=7)


def test_untempered_takes_the_square_of_the_temperature_out_of_soft_targets_alone() -> None:
    found = {"passes": 2.0, "loss": 1.0, "soft_target_kl": 16.0, "task_cross_entropy": 6.0}
    weights = {"soft_target_kl": 0.5, "task_cross_entropy": 1.0, "hidden_mse": 1.0}
    assert untempered(found, weights, 2.0) == pytest.approx(0.5 * 2.0 + 3.0)
