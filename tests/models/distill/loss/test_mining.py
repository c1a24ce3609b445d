"""Hard-example mining: what is counted more, what is dropped as noise."""

import pytest
import torch

from models.distill.loss.mining import entropy_weights, token_entropy


def test_token_entropy_in_nats() -> None:
    logits = torch.tensor([[1.0, 1.0, 1.0, 1.0], [100.0, 0.0, 0.0, 0.0]])
    assert token_entropy(logits).tolist() == pytest.approx([1.386294, 0.0], abs=1e-6)


def test_entropy_weights_grow_with_entropy() -> None:
    entropy = torch.tensor([1.0, 3.0, 0.0, 4.0])
    assert entropy_weights(entropy, 1.0, 0.0).tolist() == [0.5, 1.5, 0.0, 2.0]
    assert entropy_weights(entropy, 0.5, 0.0).tolist() == [0.75, 1.25, 0.5, 1.5]
    assert entropy_weights(entropy, 0.0, 0.0).tolist() == [1.0, 1.0, 1.0, 1.0]


def test_entropy_weights_drop_the_most_uncertain_as_noise() -> None:
    entropy = torch.tensor([1.0, 9.0, 3.0, 2.0])
    # Three are kept, of mean entropy 2, and share the weight of four.
    assert entropy_weights(entropy, 1.0, 0.25).tolist() == pytest.approx([2 / 3, 0.0, 2.0, 4 / 3])
    assert entropy_weights(entropy, 0.0, 0.25).tolist() == pytest.approx([4 / 3, 0.0, 4 / 3, 4 / 3])


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("drop_share", [0.0, 0.03, 0.5])
def test_entropy_weights_have_mean_one(strength: float, drop_share: float) -> None:
    entropy = torch.rand(101, generator=torch.Generator().manual_seed(0))
    weights = entropy_weights(entropy, strength, drop_share)
    assert weights.mean().item() == pytest.approx(1.0, abs=1e-5)
    assert (weights == 0).sum() == int(drop_share * 101)


def test_entropy_weights_of_a_sure_teacher_are_even() -> None:
    assert entropy_weights(torch.zeros(4), 1.0, 0.25).sum().item() == pytest.approx(4.0)
    assert entropy_weights(torch.zeros(0), 1.0, 0.25).tolist() == []
