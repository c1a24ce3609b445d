"""Other tools' results are read as they write them, and compared with ours."""

import json
import stat
from pathlib import Path

import pytest

from loadtest.agreement import TOOLS, Job, ToolError, agreement, lines, their_figures

JOB = Job(
    url="http://127.0.0.1:1",
    model="m",
    tokenizer=Path("/tokenizer"),
    concurrency=4,
    num_requests=9,
    prompt_tokens=100,
    answer_tokens=64,
)
WRITTEN = {
    "vllm": (
        "vllm.json",
        {"median_ttft_ms": 20.0, "median_itl_ms": 5.0, "output_throughput": 300.0, "mean_e2el_ms": 1},
    ),
    "aiperf": (
        "deep/profile_export_aiperf.json",
        {
            "time_to_first_token": {"avg": 1, "p50": 20.0},
            "inter_token_latency": {"avg": 1, "p50": 5.0},
            "output_token_throughput": {"avg": 300.0},
        },
    ),
    "guidellm": (
        "report.json",
        {
            "benchmarks": [
                {
                    "metrics": {
                        "time_to_first_token_ms": {"successful": {"median": 20.0}},
                        "inter_token_latency_ms": {"successful": {"median": 5.0}},
                        "output_tokens_per_second": {"successful": {"mean": 300.0}},
                    }
                }
            ]
        },
    ),
}


@pytest.mark.parametrize("name", TOOLS)
def test_results_are_read_as_the_tool_writes_them(name: str, tmp_path: Path) -> None:
    file, content = WRITTEN[name]
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(json.dumps(content))
    assert TOOLS[name].read(tmp_path) == {"median_ttft_ms": 20.0, "median_itl_ms": 5.0, "output_throughput": 300.0}


@pytest.mark.parametrize("name", TOOLS)
def test_every_tool_is_asked_for_the_same_load(name: str, tmp_path: Path) -> None:
    command = " ".join(TOOLS[name].command("tool", JOB, tmp_path))
    assert command.startswith("tool ")
    assert all(part in command for part in ("http://127.0.0.1:1", "/tokenizer", "100", "64", "4", "9"))


def test_ten_percent_are_allowed_and_more_is_told_with_the_noise() -> None:
    ours = [
        {"median_ttft_ms": 20.0, "median_tpot_ms": 5.0, "output_throughput": 300.0},
        {"median_ttft_ms": 22.0, "median_tpot_ms": 5.0, "output_throughput": 300.0},
    ]
    theirs = {"median_ttft_ms": 21.0, "median_itl_ms": 5.4, "output_throughput": 250.0}
    table = agreement(TOOLS["aiperf"], ours, theirs)
    assert [row["agrees"] for row in table.values()] == [True, True, False]
    assert table["median_ttft_ms"]["noise"] == pytest.approx(0.1)
    assert "DIFFERS" in lines("aiperf", table)[2]


def test_missing_and_failing_tools_are_told(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="not installed there"):
        their_figures(TOOLS["vllm"], str(tmp_path / "none"), JOB, tmp_path)
    program = tmp_path / "fails"
    program.write_text("#!/bin/sh\necho no such option >&2\nexit 2\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    with pytest.raises(ToolError, match="no such option"):
        their_figures(TOOLS["vllm"], str(program), JOB, tmp_path)
