"""`fenhe bench choosing`: every kind is really chosen, by every chooser."""

from pathlib import Path

import msgspec
import pytest

from bench.engines.choosing import FORMULAS, HEADS, KINDS, read_options, run
from models.errors import ConfigError


def test_every_figure_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "figures.json"
    assert run(["--vocabularies", "300", "--rounds", "1", "--json", str(out)]) == 0
    document = msgspec.json.decode(out.read_bytes())
    choosers = {name.split(".")[1] for name in document["figures"]}
    assert {"numpy"} <= choosers <= {"numpy", "compiled"}
    wanted = {f"us.{name}.300.{head}.{kind}" for name in choosers for head in HEADS for kind in KINDS}
    assert document["figures"].keys() == wanted
    assert all(figure > 0 for figure in document["figures"].values())
    assert document["formulas"].keys() == FORMULAS.keys()
    assert "8 rows, 8 tokens each" in capsys.readouterr().out


def test_mistakes_are_told_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_options(
            ["--rounds", "0", "--vocabularies", "7", "--kinds", "by hand", "--json", str(tmp_path / "a" / "b")]
        )
    for part in ("--rounds", "--vocabularies", "by hand", "no such folder"):
        assert part in caught.value.message
