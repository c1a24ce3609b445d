"""The losses of a batch: those of the whole vocabulary, whatever subset of it is looked at."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn.functional import kl_div, nll_loss

from models.distill.loss.batch import Batch, make_batch, states
from models.distill.loss.objective import Objective, Teacher
from models.distill.network.decoder import Trunk
from models.distill.network.exit_model import ExitModel
from models.sources.source import open_source
from tests.models.distill.tiny_teacher import examples_of, teacher_of

EXAMPLES = examples_of(9, 14, 6)
SOFT = ("soft_target_kl", "reverse_kl", "jensen_shannon")


class Echo:
    """An exit whose states are the teacher's own, moved by `noise`."""

    def __init__(self, own: Teacher, batch: Batch, noise: float = 0.0) -> None:
        self.copied_from = ()
        self._counts = batch.counts_BT
        last_NH = own.last_states(batch)
        random = torch.randn(last_NH.shape, generator=torch.Generator().manual_seed(1))
        self._last_NH = last_NH + noise * random

    def enter(self, hidden_BTH: Tensor) -> Tensor:
        return hidden_BTH

    def leave(self, hidden_BTH: Tensor) -> Tensor:
        found = torch.zeros_like(hidden_BTH)
        found[self._counts] = self._last_NH
        return found


@pytest.fixture
def own(tiny_source: Callable[..., Path], tmp_path: Path) -> Teacher:
    return teacher_of(Trunk(open_source(tiny_source("llama"))), EXAMPLES, tmp_path)


@pytest.fixture
def batch(own: Teacher) -> Batch:
    found = make_batch(range(len(EXAMPLES)), EXAMPLES, own.cache, 0, 0.5)
    assert found is not None
    return found


def terms(
    objective: Objective, exit: Any, batch: Batch, weights: dict[str, float], temperature: float = 1.0, seed: int = 0
) -> tuple[Tensor, dict[str, Tensor]]:
    head = objective.head(batch, torch.Generator().manual_seed(seed), [objective.own])
    hidden = states(objective.own.cache, batch, getattr(exit, "depth", 3), torch.device("cpu")).float()
    return objective.terms(cast(ExitModel, exit), hidden, batch, head, weights, temperature)


def exit_behind(own: Teacher, depth: int) -> ExitModel:
    return ExitModel(own.trunk, name="exit", depth=depth, copied_from=(3,), has_map=True)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_with_the_whole_vocabulary_the_terms_are_those_of_plain_torch(
    own: Teacher, batch: Batch, temperature: float
) -> None:
    exit, weights = exit_behind(own, 2), dict.fromkeys((*SOFT, "task_cross_entropy"), 0.5)
    total_N, found = terms(Objective(own, None), exit, batch, weights, temperature)
    trunk = own.trunk
    hidden = states(own.cache, batch, 2, torch.device("cpu")).float()
    logits_NV = exit(hidden)[batch.counts_BT].detach() @ trunk.head_VH.T
    student = (logits_NV / temperature).log_softmax(-1)
    teacher = (own.last_states(batch) @ trunk.head_VH.T / temperature).log_softmax(-1)
    middle = ((student.exp() + teacher.exp()) / 2).log()

    def divergence(of: Tensor, against: Tensor) -> Tensor:
        return kl_div(against, of, log_target=True, reduction="none").sum(-1) * temperature**2

    expected = {
        "soft_target_kl": divergence(teacher, student),
        "reverse_kl": divergence(student, teacher),
        "jensen_shannon": (divergence(teacher, middle) + divergence(student, middle)) / 2,
        "task_cross_entropy": nll_loss(logits_NV.log_softmax(-1), batch.target_N, reduction="none"),
    }
    for name, value_N in expected.items():
        torch.testing.assert_close(found[name], value_N, rtol=1e-3, atol=1e-4)
        assert value_N.mean() > 0.05
    torch.testing.assert_close(total_N.detach(), torch.stack(list(expected.values())).sum(0) / 2, rtol=1e-3, atol=1e-3)
    assert total_N.requires_grad
    assert not any(value.requires_grad for value in found.values())


@pytest.mark.parametrize("name", [*SOFT, "task_cross_entropy", "top_k"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_a_subset_is_expected_to_say_what_the_whole_vocabulary_says(
    own: Teacher, batch: Batch, name: str, temperature: float
) -> None:
    is_top_k = name == "top_k"
    loss = "soft_target_kl" if is_top_k else name
    exit = Echo(own, batch, noise=0.3)
    weights = {loss: 1.0}
    whole = terms(Objective(own, None, top_k=is_top_k), exit, batch, weights, temperature)[0].mean()
    subset = Objective(own, 60, top_k=is_top_k)
    drawn = torch.stack([terms(subset, exit, batch, weights, temperature, seed)[0].mean() for seed in range(120)])
    assert float(drawn.mean()) == pytest.approx(float(whole), rel=0.05)
    assert float(drawn.std()) > 0


@pytest.mark.parametrize("head_tokens", [None, 0, 20])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_equal_models_have_no_divergence(
    own: Teacher, batch: Batch, head_tokens: int | None, temperature: float
) -> None:
    _, found = terms(Objective(own, head_tokens), Echo(own, batch), batch, dict.fromkeys(SOFT, 1.0), temperature)
    assert found.keys() == set(SOFT)
    for value_N in found.values():
        assert value_N.abs().max() < 1e-4


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_equal_models_have_no_divergence_by_their_likeliest_tokens(
    own: Teacher, batch: Batch, temperature: float
) -> None:
    objective = Objective(own, None, top_k=True)
    total_N, _ = terms(objective, Echo(own, batch), batch, {"soft_target_kl": 1.0}, temperature)
    # The cache's log-probabilities are fp16.
    assert total_N.abs().max() < 2e-3


def test_the_subset_is_what_is_likely_the_targets_and_some_more(own: Teacher, batch: Batch) -> None:
    likely = set(own.cache.top_ids[batch.rows_N].flatten().tolist()) | set(batch.target_N.tolist())
    head = Objective(own, 20).head(batch, torch.Generator().manual_seed(0), [own])
    assert len(head.bias_M) == len(likely) + 20 == len(head.weight_MH)
    # Each of the twenty stands for as many of those that are not likely.
    others = head.bias_M[head.bias_M != 0]
    torch.testing.assert_close(others.exp(), torch.full((20,), (320 - len(likely)) / 20))
    assert torch.equal(head.weight_MH[head.target_N], own.trunk.head_VH[batch.target_N])


def test_several_teachers_speak_as_one(own: Teacher, batch: Batch) -> None:
    objective = Objective(own, None)
    alone = objective.head(batch, torch.Generator(), [own]).soft[0].log_softmax(-1)
    twice = objective.head(batch, torch.Generator(), [own, own]).soft[0].log_softmax(-1)
    torch.testing.assert_close(alone, twice, rtol=1e-4, atol=1e-4)


def test_hidden_losses_are_zero_for_the_teachers_own_states(own: Teacher, batch: Batch) -> None:
    weights = {"hidden_mse": 1.0, "hidden_cosine": 1.0}
    total_N, found = terms(Objective(own, 20), Echo(own, batch), batch, weights)
    assert found.keys() == weights.keys()
    assert total_N.abs().max() < 1e-5
    moved, _ = terms(Objective(own, 20), Echo(own, batch, noise=1.0), batch, weights)
    assert moved.min() > 0.01


def test_alignment_and_attention_are_against_the_layer_that_was_copied(own: Teacher, batch: Batch) -> None:
    weights = {"module_alignment": 1.0, "attention_transfer": 1.0}
    objective = Objective(own, 20)
    _, at_home = terms(objective, exit_behind(own, 3), batch, weights)
    assert all(value.abs().max() < 1e-5 for value in at_home.values())
    total_N, abroad = terms(objective, exit_behind(own, 2), batch, weights)
    assert all(value.mean() > 1e-3 for value in abroad.values())
    assert total_N.requires_grad


def test_attention_is_no_loss_of_an_exit_without_blocks(own: Teacher, batch: Batch) -> None:
    exit = ExitModel(own.trunk, name="exit", depth=2, copied_from=(), has_map=True)
    _, found = terms(Objective(own, 20), exit, batch, {"attention_transfer": 1.0, "module_alignment": 1.0})
    assert found.keys() == {"module_alignment"}
