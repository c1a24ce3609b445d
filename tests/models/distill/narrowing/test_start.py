"""A leg goes on from the matrices of the widths that have some."""

from pathlib import Path
from typing import Any

import numpy as np

from models.building.width_file import read_width_file
from models.distill.narrowing.narrowing import start_from
from models.sources.source import open_source
from models.student.manifest import Width
from tests.conftest import TinySource
from tests.models.width_files import MIXED, MIXED_PATHS, MIXED_WIDTHS, NUM_NEURONS, WIDTHS, write_tiny_widths


def test_mixed_widths_are_left_out_and_change_nothing_of_the_others(tiny_source: TinySource, tmp_path: Path) -> None:
    """One that takes a layer whole would stand first, and give the widths the model's own matrix of attention there."""
    source = open_source(tiny_source("llama", intermediate_size=NUM_NEURONS))
    almost = Width(name="almost", neurons=MIXED_WIDTHS[0].neurons, has_own_output=True)
    mixture: dict[str, Any] = {"widths": (almost, *MIXED_WIDTHS[1:]), "mixed": MIXED, "paths": MIXED_PATHS}
    mixed = start_from(read_width_file(write_tiny_widths(tmp_path / "mixed", source, **mixture)), source)
    plain = start_from(read_width_file(write_tiny_widths(tmp_path / "plain", source)), source)
    assert mixed.widths == plain.widths == WIDTHS
    for one, other in zip(mixed.layers, plain.layers, strict=True):
        assert one.down_HK.keys() == other.down_HK.keys()
        assert one.output_HA is not None
        assert other.output_HA is not None
        np.testing.assert_array_equal(one.output_HA, other.output_HA)
