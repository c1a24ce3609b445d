"""The order of neurons, the refitted matrix, and how many neurons each layer keeps."""

import itertools

import pytest
import torch
from torch import Tensor

from models.distill.narrowing.allocation import allocate
from models.distill.narrowing.elimination import damped, eliminate, refit


def correlated(count: int = 96, inner: int = 40, seed: int = 0) -> Tensor:
    """Second moments of neurons that say much the same as one another. Shapes: [count, count]."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(count, inner, generator=generator) * torch.rand(count, 1, generator=generator)
    return mixing @ mixing.T / inner + 0.01 * torch.eye(count)


def matrix(count: int = 96, rows: int = 24) -> Tensor:
    return torch.randn(rows, count, generator=torch.Generator().manual_seed(1))


def error(down_HI: Tensor, moment_II: Tensor, kept_K: Tensor, narrow_HK: Tensor) -> float:
    change = -down_HI.double()
    change[:, kept_K] += narrow_HK.double()
    return float((change @ moment_II.double() * change).sum())


def test_errors_are_those_of_the_refitted_matrix() -> None:
    down, moment = matrix(), correlated()
    found = eliminate(down, moment, least=32, group=8)
    assert sorted(found.order_I.tolist()) == list(range(96))
    for kept, expected in found.errors.items():
        order = found.order_I[:kept]
        # The refit's own objective has the damped moments.
        assert error(down, damped(moment), order, refit(down, moment, order)) == pytest.approx(
            expected, rel=1e-4, abs=1e-6
        )


def test_errors_grow_with_every_group() -> None:
    found = eliminate(matrix(), correlated(), least=32, group=8)
    assert list(found.errors) == list(range(96, 31, -8))
    assert all(one <= other for one, other in itertools.pairwise(found.errors.values()))


def test_neurons_that_stay_keep_their_order() -> None:
    found = eliminate(matrix(), correlated(), least=32)
    assert found.order_I[:32].tolist() == sorted(found.order_I[:32].tolist())


def test_the_order_and_the_refit_beat_magnitude_and_truncation() -> None:
    down, moment = matrix(), correlated()
    order = eliminate(down, moment, least=48, group=4).order_I[:48]
    largest = (down.norm(dim=0) * moment.diagonal().sqrt()).argsort(descending=True)[:48]
    ours = error(down, moment, order, refit(down, moment, order))
    assert (
        ours
        < error(down, moment, largest, refit(down, moment, largest))
        < error(down, moment, largest, down[:, largest])
    )


def test_a_neuron_that_repeats_another_goes_first() -> None:
    down, moment = matrix(), correlated()
    moment[5] = moment[7]
    moment[:, 5] = moment[:, 7]
    moment[5, 5] = moment[7, 7]
    found = eliminate(down, moment, least=88, group=1)
    assert int(found.order_I[-1]) in (5, 7)
    assert found.errors[95] < eliminate(down, correlated(), least=88, group=1).errors[95]


def test_one_loud_neuron_does_not_damp_the_others() -> None:
    down, moment = matrix(), correlated()
    loud = moment.clone()
    loud[0, 0] += 1e5
    quiet_order, loud_order = (eliminate(down, one, least=48).order_I[:48] for one in (moment, loud))
    assert 0 in loud_order
    assert error(down, loud, loud_order, refit(down, loud, loud_order)) < 1.3 * error(
        down, moment, quiet_order, refit(down, moment, quiet_order)
    )


ERRORS = [{512 - 64 * n: scale * n * n for n in range(8)} for scale in (1.0, 2.0, 8.0)]


def test_allocation_spends_exactly_what_there_is_where_it_counts() -> None:
    counts = allocate(ERRORS, [9.0, 18.0, 72.0], measured_at=320, total=3 * 320, least=64)
    assert sum(counts) == 3 * 320
    assert counts[0] <= counts[1] <= counts[2]
    assert all(count % 64 == 0 for count in counts)


def test_allocation_costs_no_more_than_any_other() -> None:
    measured, total = [9.0, 18.0, 72.0], 3 * 256
    counts = allocate(ERRORS, measured, measured_at=320, total=total, least=64)

    def cost(chosen: tuple[int, ...]) -> float:
        return sum(e[k] / e[320] * m for e, k, m in zip(ERRORS, chosen, measured, strict=True))

    others = [one for one in itertools.product(range(64, 513, 64), repeat=3) if sum(one) == total]
    assert cost(counts) == pytest.approx(min(map(cost, others)))


def test_allocation_leaves_no_layer_below_the_least() -> None:
    assert allocate(ERRORS, [1e-6, 1.0, 1.0], measured_at=320, total=3 * 384, least=256)[0] == 256


def test_a_wider_allocation_holds_a_narrower_one() -> None:
    narrow, wide = (
        allocate(ERRORS, [9.0, 18.0, 72.0], measured_at=320, total=3 * kept, least=64) for kept in (256, 384)
    )
    assert all(one <= other for one, other in zip(narrow, wide, strict=True))
