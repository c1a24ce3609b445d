"""Merged branches, on tensors small enough to work out by hand."""

import math

import pytest
import torch

from models.distill.network.merge import average, fuse, importance
from models.errors import ConfigError

ROW = torch.zeros(1, 10)


def changed(**values: float) -> torch.Tensor:
    """`ROW` with column `c3=0.5` and so on changed."""
    row = ROW.clone()
    for column, value in values.items():
        row[0, int(column[1:])] = value
    return row


def test_average_weighs_branches_by_their_share() -> None:
    branches = [{"w": torch.tensor([4.0, 0.0])}, {"w": torch.tensor([0.0, 8.0])}]
    torch.testing.assert_close(average(branches)["w"], torch.tensor([2.0, 4.0]))
    torch.testing.assert_close(average(branches, [3, 1])["w"], torch.tensor([3.0, 2.0]))
    torch.testing.assert_close(average(branches, [0, 5])["w"], torch.tensor([0.0, 8.0]))


def test_average_stays_on_the_branches_device() -> None:
    branches = [{"w": torch.zeros(3, 2, device="meta", dtype=torch.float16)} for _ in range(2)]
    merged = average(branches)["w"]
    assert (merged.device.type, merged.dtype, merged.shape) == ("meta", torch.float16, (3, 2))


def test_importance_is_the_change_times_the_divergence_of_its_row() -> None:
    base = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    branch = torch.tensor([[math.log(3), 0.0], [1.0, 1.0]])
    # Row 0: softmax goes from (1/2, 1/2) to (3/4, 1/4): KL = 3/4 ln(3/2) + 1/4 ln(1/2).
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    expected = torch.tensor([[math.log(3) * divergence, 0.0], [0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(importance(base, branch), expected)


def test_importance_is_blind_to_a_shift_of_a_whole_row() -> None:
    base = torch.tensor([[1.0, 2.0, 3.0]])
    assert importance(base, base + 4).abs().max() < 1e-12


def test_importance_resolves_changes_below_single_precision() -> None:
    base = torch.zeros(1, 4)
    branch = torch.tensor([[1e-4, -1e-4, 1e-4, -1e-4]])
    # To second order KL is half the variance of the change: 5e-9, below what fp32 can tell from nothing.
    torch.testing.assert_close(importance(base, branch)[0, 0].item(), 1e-4 * 5e-9, rtol=1e-3, atol=0)


def test_fusing_keeps_only_changes_that_stand_out() -> None:
    base = torch.zeros(1, 9)
    branch = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 12.0]])
    # All share one row and so one divergence: importances are in proportion to the changes. Quartiles 3, 5 and 7:
    # the threshold is 5 + 1.5 x 4 = 11.
    expected = torch.tensor([[0.0] * 8 + [12.0]])
    torch.testing.assert_close(fuse({"w": base}, [{"w": branch}])["w"], expected)
    branch[0, -1] = 10.9
    torch.testing.assert_close(fuse({"w": base}, [{"w": branch}])["w"], base)


def test_fusing_takes_each_branchs_own_changes_and_the_most_important_where_they_meet() -> None:
    # With most columns unchanged every threshold is zero, so that each change stands out. In column 3 the smaller
    # change is the more important one: 2 x KL 0.373 against 4 x KL 0.095.
    first, second = changed(c0=1.0, c3=2.0), changed(c1=-0.5, c3=-4.0)
    fused = fuse({"w": ROW}, [{"w": first}, {"w": second}])["w"]
    torch.testing.assert_close(fused, changed(c0=1.0, c1=-0.5, c3=2.0))
    torch.testing.assert_close(fuse({"w": ROW}, [{"w": second}, {"w": first}])["w"], fused)


def test_fusing_unchanged_branches_gives_the_base_in_its_own_type() -> None:
    base = {"w": torch.full((2, 3), 1.5, dtype=torch.float16), "gamma": torch.tensor([1.0, 2.0])}
    fused = fuse(base, [dict(base), dict(base)])
    assert fused["w"].dtype == torch.float16
    assert all(torch.equal(fused[name], base[name]) for name in base)


def test_branches_of_other_shapes_are_refused_by_name() -> None:
    base = {"w": torch.zeros(2, 3), "bias": torch.zeros(2)}
    with pytest.raises(ConfigError, match="differ in bias, w"):
        fuse(base, [{"w": torch.zeros(3, 2)}])
    with pytest.raises(ConfigError, match="differ in extra"):
        average([base, base | {"extra": torch.zeros(1)}])


@pytest.mark.parametrize("weights", [[1.0], [0.0, 0.0], [2.0, -1.0], [math.nan, 1.0]])
def test_weights_that_do_not_fit_are_refused(weights: list[float]) -> None:
    with pytest.raises(ConfigError, match="weight of at least 0"):
        average([{"w": torch.zeros(1)}, {"w": torch.ones(1)}], weights)


def test_nothing_to_merge_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing to merge"):
        fuse({"w": torch.zeros(1)}, [])
    with pytest.raises(ConfigError, match="nothing to merge"):
        average([])
