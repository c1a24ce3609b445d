"""The cut: measured once and kept, or taken from the config; its picture is drawn in both cases."""

from collections.abc import Callable
from pathlib import Path

import pytest

from models.distill.cutting.measured_cut import cut_modules, measure_layers
from models.distill.network.decoder import Trunk
from models.distill.work_folder import WorkFolder
from models.errors import ConfigError
from models.sources.source import open_source
from tests.models.distill.tiny_teacher import examples_of

EXAMPLES = examples_of(30, 40)
SHA = "5" * 64


def refuse() -> Trunk:
    raise AssertionError("nothing is left to measure")


@pytest.fixture
def trunk(tiny_source: Callable[..., Path]) -> Trunk:
    return Trunk(open_source(tiny_source("llama")))


def test_layers_are_measured_once_whatever_the_order_of_the_text(trunk: Trunk, tmp_path: Path) -> None:
    work = WorkFolder(path=tmp_path)
    measured = measure_layers(EXAMPLES, SHA, lambda: trunk, work)
    assert measured.num_layers == trunk.architecture.num_layers
    assert measure_layers(EXAMPLES[::-1], SHA, refuse, work) == measured
    with pytest.raises(AssertionError, match="left to measure"):
        measure_layers(EXAMPLES, "6" * 64, refuse, work)


def test_a_given_cut_is_taken_and_drawn(trunk: Trunk, tmp_path: Path) -> None:
    work = WorkFolder(path=tmp_path)
    analysis = measure_layers(EXAMPLES, SHA, lambda: trunk, work)
    modules = cut_modules("a:3,b:1", analysis, work)
    assert [(module.name, module.num_layers) for module in modules] == [("a", 3), ("b", 1)]
    assert "a 3, b 1" in work.boundary_picture.read_text()
    with pytest.raises(ConfigError, match="has 3 layers, the model has 4"):
        cut_modules("a:2,b:1", analysis, work)


def test_auto_cuts_all_layers(trunk: Trunk, tmp_path: Path) -> None:
    work = WorkFolder(path=tmp_path)
    modules = cut_modules("auto", measure_layers(EXAMPLES, SHA, lambda: trunk, work), work)
    assert [module.name for module in modules] == ["knowledge", "reasoning", "adapter"]
    assert sum(module.num_layers for module in modules) == trunk.architecture.num_layers
