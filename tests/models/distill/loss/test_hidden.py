"""Losses on hidden states, attention maps and module boundaries against cases worked out by hand."""

import pytest
import torch
from torch import Tensor

from models.distill.loss.hidden import attention_transfer, hidden_cosine, hidden_mse, module_alignment


def test_hidden_mse_is_the_mean_over_channels() -> None:
    student, teacher = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[4.0, 2.0], [0.0, 2.0]])
    assert hidden_mse(student, teacher).tolist() == [4.5, 2.0]


def test_hidden_mse_of_half_precision_does_not_overflow() -> None:
    student, teacher = torch.full((1, 2), 400.0).half(), torch.zeros(1, 2).half()
    assert hidden_mse(student, teacher).tolist() == [160_000.0]


def test_hidden_cosine_looks_at_direction_alone() -> None:
    student = torch.tensor([[3.0, 0.0], [0.0, 2.0], [-1.0, 0.0], [3.0, 4.0]])
    teacher = torch.tensor([[9.0, 0.0], [5.0, 0.0], [7.0, 0.0], [1.0, 0.0]])
    assert hidden_cosine(student, teacher).tolist() == pytest.approx([0.0, 1.0, 2.0, 0.4], abs=1e-6)


def maps(*heads: tuple[float, float]) -> Tensor:
    """One sequence of three positions; in every head the second looks as given, the third is even."""
    third = 1 / 3
    return torch.tensor([[[[1, 0, 0], [first, second, 0], [third] * 3] for first, second in heads]])


IS_REAL = torch.tensor([[True, True, True]])


def test_attention_transfer_averages_the_divergence_over_heads() -> None:
    student = maps((0.5, 0.5), (0.25, 0.75))
    teacher = maps((0.75, 0.25), (0.25, 0.75))
    # 3/4 ln(3/2) + 1/4 ln(1/2) in the first head, nothing in the second.
    assert attention_transfer(student, teacher, IS_REAL).tolist() == pytest.approx([0.0, 0.065406, 0.0], abs=1e-6)


def test_attention_transfer_averages_maps_when_heads_differ_in_number() -> None:
    student = maps((0.5, 0.5))
    assert attention_transfer(student, maps((0.75, 0.25), (0.25, 0.75)), IS_REAL).abs().max() < 1e-6
    # A mean of (3/4, 1/4).
    loss = attention_transfer(student, maps((0.5, 0.5), (1.0, 0.0)), IS_REAL)
    assert loss.tolist() == pytest.approx([0.0, 0.130812, 0.0], abs=1e-6)


def test_attention_transfer_goes_from_teacher_to_student() -> None:
    loss = attention_transfer(maps((0.75, 0.25)), maps((0.5, 0.5)), IS_REAL)
    # 1/2 ln(2/3) + 1/2 ln 2
    assert loss[1].item() == pytest.approx(0.143841, abs=1e-6)


def test_attention_transfer_leaves_padding_out() -> None:
    student = torch.cat((maps((0.5, 0.5)), maps((0.5, 0.5))))
    teacher = torch.cat((maps((0.75, 0.25)), maps((0.5, 0.5))))
    teacher[0, :, 2] = torch.tensor([1.0, 0.0, 0.0])
    is_real = torch.tensor([[True, True, False], [True, True, True]])
    loss = attention_transfer(student, teacher, is_real)
    assert loss.tolist() == pytest.approx([0.0, 0.130812, 0.0, 0.0, 0.0], abs=1e-6)


def test_attention_transfer_has_finite_gradients_at_masked_places() -> None:
    scores = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    visible = torch.ones(3, 3, dtype=torch.bool).tril()
    student = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1)
    loss = attention_transfer(student, maps((0.75, 0.25), (0.5, 0.5)), IS_REAL)
    (gradient,) = torch.autograd.grad(loss.sum(), scores)
    assert gradient.isfinite().all()
    assert gradient[0, :, 1].abs().max() > 0


def test_module_alignment_is_relative_to_the_teacher_state() -> None:
    teacher = torch.tensor([[3.0, 4.0], [300.0, 400.0]])
    student = torch.tensor([[3.0, 4.0], [300.0, 350.0]])
    aligned = module_alignment([teacher, student, torch.zeros(2, 2)], [teacher, teacher, teacher])
    assert aligned.shape == (3, 2)
    assert aligned.flatten().tolist() == pytest.approx([0.0, 0.0, 0.0, 0.01, 1.0, 1.0])


def test_module_alignment_wants_a_teacher_state_for_every_link() -> None:
    with pytest.raises(ValueError, match="shorter"):
        module_alignment([torch.ones(1, 2), torch.ones(1, 2)], [torch.ones(1, 2)])
