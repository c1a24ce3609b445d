"""A whole comparison, of servers that only stream, in seconds."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from loadtest.__main__ import main
from loadtest.comparison.compare import ABLATION, QUICK_SERVERS
from loadtest.comparison.servers import Place, check_needs, read_servers
from loadtest.comparison.stages import FULL, QUICK, expected_s
from loadtest.traffic.reading import read_workload

FAKE = "tests.loadtest.fake_server"
MORE = f"""
[fake]
about = "streams"
role = "peer"
batches = true
command = ["{sys.executable}", "-m", "{FAKE}", "well", "port={{port}}", "seconds=100"]

[broken]
about = "ends at once"
role = "peer"
batches = true
command = ["{sys.executable}", "-c", "print('no model')"]

[missing]
about = "needs what is not there"
role = "peer"
batches = true
needs = ["no_such_package_of_anybody"]
install = "pip install it"
command = ["x"]
"""
WORKLOAD = """
[schedule]
kind = "poisson"
rate = 9
[prompts]
tasks = {math = 1, fact = 1}
tokens = {median = 20, least = 8, most = 40}
[answers]
tokens = {median = 5, least = 5, most = 5}
[slo]
ttft_ms = 5000
tpot_ms = 1000
[validity]
most_late = 1
most_generator_cpu = 1
"""
SIZES = {"ladder": [1, 2], "ladder_s": 1, "probe_s": 1, "most_probes": 2, "concurrency_tries": 0, "warm_up_s": 0.2}


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    (tmp_path / "more.toml").write_text(MORE)
    (tmp_path / "work.toml").write_text(WORKLOAD)
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "manifest.json").write_text("{}")
    given = ["compare", "--quick", "--servers-file", str(tmp_path / "more.toml"), "--sizes", json.dumps(SIZES)]
    return [*given, "--student", str(tmp_path / "student"), "--workload", str(tmp_path / "work.toml")]


def test_compare_measures_what_runs_and_names_what_does_not(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, page = tmp_path / "out.json", tmp_path / "page.html"
    options += ["--servers", "fake,broken,missing", "--stages", "ladder,sweep", "--json", str(out), "--html", str(page)]
    assert main(options) == 0
    found: dict[str, Any] = json.loads(out.read_text())
    assert {"machine", "versions", "figures", "servers", "formulas"} <= set(found)
    fake = found["servers"]["fake"]
    assert [point["concurrency"] for point in fake["ladder"]] == [1, 2]
    assert len(fake["sweep"]) == 2
    assert fake["knee"] > 0
    assert fake["concurrency"] == 2
    assert len({point["seed"] for point in (*fake["ladder"], *fake["sweep"])}) == 4
    assert "ended with status 0: no model" in found["servers"]["broken"]["absent"]
    assert "pip install it" in found["servers"]["missing"]["absent"]
    assert "<svg" in page.read_text()
    told = capsys.readouterr()
    assert "fake" in told.out
    assert "round 1 of 1" in told.err


def test_plan_says_how_long_without_starting_anything(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*options, "--servers", "missing", "--plan"]) == 0
    assert "minutes" in capsys.readouterr().err


def test_unknown_names_are_told_together(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*options, "--servers", "fake,fack", "--stages", "sweeep"]) == 2
    told = capsys.readouterr().err
    assert all(part in told for part in ("'fack'", "'sweeep'", "llama-cpp-server"))
    assert main([*options, "--sizes", '{"rounds": "many"}']) == 2
    assert "--sizes" in capsys.readouterr().err
    assert main([*options, "--server-cores", "0,9999"]) == 2
    assert "9999" in capsys.readouterr().err


def test_quick_comparison_fits_into_twenty_five_minutes() -> None:
    assert "llama-cpp-server" in QUICK_SERVERS
    assert "openvino" in QUICK_SERVERS
    assert expected_s(read_workload("headline"), QUICK, QUICK_SERVERS, len(ABLATION)) < 25 * 60
    assert FULL.confirm_s == read_workload("headline").schedule.duration_s


def test_commands_of_the_shipped_servers_can_be_filled_in(tmp_path: Path) -> None:
    place = Place(
        server_cores=(0,),
        generator_cores=(1,),
        folder=tmp_path,
        student=tmp_path / "s",
        gguf=tmp_path / "g.gguf",
        pythons={"vllm": "/v/python"},
    )
    assert place.python_of("vllm") == "/v/python"
    assert place.python_of("openvino") == sys.executable
    for name, spec in read_servers().items():
        command = place.fill(name, spec.command, 8123)
        assert "8123" in command
        assert not [part for part in command if "{" in part]
        if spec.role == "ours":
            check_needs(name, spec, place)
