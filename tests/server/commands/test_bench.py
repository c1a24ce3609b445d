"""`fenhe bench`: every bench is listed, and an unknown name is answered with the known ones."""

import importlib

import pytest

from server.commands.bench import BENCHES
from server.commands.cli import main


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_lists_every_bench(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", option]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, bench in BENCHES.items():
        assert [line.split()[:1] == [name] and line.endswith(bench.about) for line in lines].count(True) == 1


def test_help_of_the_command_names_every_bench(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    told = capsys.readouterr().out
    assert all(name in told for name in BENCHES)


@pytest.mark.parametrize("name", BENCHES)
def test_bench_has_its_own_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert callable(importlib.import_module(BENCHES[name].module).run)
    with pytest.raises(SystemExit) as ended:
        main(["bench", name, "--help"])
    assert ended.value.code == 0
    assert f"fenhe bench {name}" in capsys.readouterr().out


def test_unknown_bench_is_answered_with_what_was_meant(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "gramar"]) == 2
    told = capsys.readouterr().err
    assert "did you mean grammar?" in told
    assert "`fenhe bench --help`" in told
