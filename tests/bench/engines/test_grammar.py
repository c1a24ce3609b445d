"""`fenhe bench grammar` on a tiny student: its figures come from rows that really keep to the grammars."""

from pathlib import Path

import msgspec
import pytest

from bench.engines.grammar import FORMULAS, GRAMMARS, SAMPLINGS, read_options, run
from models.building.build import build_student
from models.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path, tiny_source: object) -> Path:
    assert callable(tiny_source)
    out = tmp_path / "student"
    build_student(tiny_source("llama"), out, modules="first:2,second:2", precisions=("fp32",))
    return out


def test_every_figure_is_there_and_has_its_formula(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures.json"
    arguments = ["--student", str(folder), "--precision", "fp32", "--rows", "2", "--tokens", "4", "--rounds", "1"]
    assert run([*arguments, "--threads", "1", "--json", str(out)]) == 0
    kinds = ["free_step_ms", "beside", *(f"ratio.{grammar}" for grammar in GRAMMARS)]
    document = msgspec.json.decode(out.read_bytes())
    assert document["figures"].keys() == {f"{kind}.{sampling}" for kind in kinds for sampling in SAMPLINGS}
    assert {kind.split(".")[0] for kind in kinds} == {formula.split(".")[0] for formula in FORMULAS}
    assert "2 rows, 4 tokens each, path full, 1 rounds" in capsys.readouterr().out


def test_mistakes_are_told_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_options(["--rows", "1", "--rounds", "0", "--json", str(tmp_path / "nowhere" / "out.json")])
    for part in ("--rows", "--rounds", "nowhere"):
        assert part in caught.value.message
