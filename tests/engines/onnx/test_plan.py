"""A plan says which precision runs for how many rows, and which have to be loaded for it."""

import pytest

from engines.onnx.plan import PrecisionPlan

PLAN = PrecisionPlan(many="w8a8", few=((1, "fp32"), (4, "int8"), (8, "fp32")))


def test_plan_variants_are_listed_once() -> None:
    assert PLAN.variants == ("w8a8", "fp32", "int8")


@pytest.mark.parametrize(("num_rows", "variant"), [(1, "fp32"), (2, "int8"), (4, "int8"), (5, "fp32"), (9, "w8a8")])
def test_plan_takes_the_first_bound_that_holds_the_rows(num_rows: int, variant: str) -> None:
    assert PLAN.decode(num_rows) == variant
    assert PLAN.prefill == "w8a8"


def test_plan_describes_itself_in_words() -> None:
    assert PLAN.describe() == "fp32 up to 1 rows, then int8 up to 4 rows, then fp32 up to 8 rows, then w8a8"
    assert PrecisionPlan(many="int8").describe() == "int8"
