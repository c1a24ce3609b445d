"""Which tokens of a step run how wide."""

import numpy as np
import pytest

from engines.vllm.form import PathForm
from engines.vllm.rows import StepRows

FULL, WIDE, SLIM = (PathForm(num_layers=4, width=width) for width in (0, 1, 2))


def test_rows_are_counted_by_width_widest_first() -> None:
    rows = StepRows.of([FULL, WIDE, SLIM, SLIM], [5, 1, 1, 3], 2)
    assert rows.counts == (5, 6, 10)
    assert (rows.num_whole, rows.is_whole, rows.order) == (5, False, None)


def test_rows_of_the_whole_width_alone_need_nothing_special() -> None:
    rows = StepRows.of([FULL, FULL], [2, 1], 2)
    assert rows.counts == (3, 3, 3)
    assert rows.is_whole


def test_rows_that_do_not_lie_by_width_are_put_in_order() -> None:
    rows = StepRows.of([SLIM, FULL, WIDE, FULL], [2, 1, 3, 1], 2)
    assert rows.counts == (2, 5, 7)
    assert rows.order == (2, 6, 3, 4, 5, 0, 1)


def test_rows_in_any_order_have_every_token_in_its_width() -> None:
    random = np.random.default_rng(3)
    for _ in range(200):
        widths = random.integers(0, 3, random.integers(1, 9)).tolist()
        counts = random.integers(1, 5, len(widths)).tolist()
        rows = StepRows.of([PathForm(num_layers=4, width=width) for width in widths], counts, 2)
        of_token = [width for width, count in zip(widths, counts, strict=True) for _ in range(count)]
        order = range(len(of_token)) if rows.order is None else rows.order
        assert sorted(order) == list(range(len(of_token)))
        first = 0
        for width, end in enumerate(rows.counts):
            assert [of_token[token] for token in order][first:end] == [width] * (end - first)
            first = end


def test_two_depths_in_one_step_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"sequences of \[2, 4\] layers"):
        StepRows.of([FULL, PathForm(num_layers=2)], [1, 1], 2)
