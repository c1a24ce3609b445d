"""Whole runs of some seconds against a server that streams well or badly: the results' structure and the exit
statuses."""

import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from loadtest.measure.figures import FORMULAS, figure_names
from loadtest.traffic.schedules import read_trace
from tests.loadtest.fake_server import BUSY, CUT, ERROR, NO_STREAM, NO_USAGE, WELL, FakeServer, running

SMOKE = """
[schedule]
kind = "poisson"
rate = 20
warm_up_s = 0.5
duration_s = 2
drain_s = 5

[prompts]
tasks = {math = 1, legal = 1}
tokens = {median = 20, least = 8, most = 40}

[answers]
tokens = {median = 6, least = 3, most = 9}

[validity]          # a test may run on a machine that has no time for it
most_late = 1
most_generator_cpu = 1
"""
Done = subprocess.CompletedProcess[str]


def loadtest(*arguments: str | Path) -> Done:
    command = [sys.executable, "-m", "loadtest", "run", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)


@pytest.fixture
def smoke(tmp_path: Path) -> Path:
    (tmp_path / "smoke.toml").write_text(SMOKE)
    return tmp_path / "smoke.toml"


def test_run_tells_what_users_saw(smoke: Path, tmp_path: Path) -> None:
    out, trace = tmp_path / "out.json", tmp_path / "trace.csv"
    smoke.write_text(SMOKE + "[repeats]\nshare = 0.4\npopulation = 4\ntolerance = 0.2\n[slo]\nttft_ms = 9000\n")
    with running(FakeServer(line_end="\r\n")) as server:
        done = loadtest("--url", server.url, "--workload", smoke, "--json", out, "--trace-out", trace)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "TTFT p95" not in done.stdout
    assert "success 100.00%" in done.stdout
    assert "(measuring)" in done.stderr
    found: dict[str, Any] = json.loads(out.read_text())
    figures = found["figures"]
    assert set(figures) <= set(figure_names())
    assert figures["completed"] > 10
    assert figures["request_goodput"] == figures["request_throughput"]
    assert figures["median_ttft_ms"] > 9  # the server waits 10 ms
    assert figures["median_prompt_tokens"] == 30
    assert 0.2 < figures["hit_ratio"] < 0.6
    assert figures["p99_late_ms"] >= 0
    assert found["formulas"] == FORMULAS
    assert set(found["by_task"]) == {"math", "legal"}
    assert set(found["by_path"]) == {"full"}
    assert found["machine"]["cores"] > 0
    assert found["versions"]["locust"]
    assert len(found["quantiles"]["ttft_ms"]) == 101
    assert sum(one["completed"] for one in found["by_task"].values()) == figures["completed"]
    # the repeated prompts were asked first, and the schedule was kept for another run
    assert len(server.bodies) >= 4 + len(read_trace(trace))


def test_closed_loop_has_as_many_at_once_as_asked(smoke: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    options = ("--concurrency", "3", "--duration", "1", "--model", "m", "--body", 'fenhe={"cache": false}')
    with running(FakeServer(first_s=0.05)) as server:
        done = loadtest("--url", server.url, "--workload", smoke, "--json", out, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(out.read_text())["figures"]
    in_flight = figures["request_throughput"] * figures["mean_e2el_ms"] / 1000  # Little's law
    assert 1.5 < in_flight < 3.5
    assert "late_share" not in figures
    assert {body["model"] for body in server.bodies} == {"m"}
    assert all(body["fenhe"] == {"cache": False} for body in server.bodies)


def test_two_processes_share_one_run(smoke: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    with running(FakeServer()) as server:
        assert loadtest("--url", server.url, "--workload", smoke, "--json", one).returncode == 0
        port = str(20000 + time.time_ns() % 20000)
        done = loadtest(
            "--url", server.url, "--workload", smoke, "--json", two, "--processes", "2", "--master-port", port
        )
    assert done.returncode == 0, done.stdout + done.stderr
    counts = [json.loads(file.read_text())["figures"]["completed"] for file in (one, two)]
    assert counts[0] == counts[1]
    texts = [json.dumps(body["messages"]) for body in server.bodies if body["max_tokens"] > 2]  # 2: before the run
    assert len(texts) == 2 * len(set(texts))  # the same sessions, each played once


def test_workers_are_led_by_a_master(smoke: Path, tmp_path: Path) -> None:
    out, port = tmp_path / "out.json", str(20000 + time.time_ns() % 20000)
    worker = [sys.executable, "-m", "loadtest", "run", "--worker", "127.0.0.1", "--master-port", port]
    with running(FakeServer()) as server:
        workers = [subprocess.Popen(worker, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(2)]
        try:
            options = ("--master", "2", "--master-port", port, "--json", out)
            done = loadtest("--url", server.url, "--workload", smoke, *options)
            assert [one.wait(30) for one in workers] == [0, 0]
        finally:
            for one in workers:
                one.kill()
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(out.read_text())["figures"]["completed"] > 10


def test_sessions_leave_and_carry_what_was_said(smoke: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    smoke.write_text(SMOKE + "[sessions]\nturns = 2\n[behaviour]\ncancel_share = 0.3\nbound_share = 0.2\n")
    with running(FakeServer()) as server:
        done = loadtest("--url", server.url, "--workload", smoke, "--json", out)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())["figures"]
    assert found["left"] > 0
    assert found["failed"] == 0
    second = [body["messages"] for body in server.bodies if len(body["messages"]) == 3]
    assert second
    assert all(messages[1]["content"].startswith("t0 t1 ") for messages in second)
    assert any("response_format" in body for body in server.bodies)


@pytest.mark.parametrize(
    ("manner", "told"), [(CUT, "Incomplete response"), (ERROR, "error in the stream"), (BUSY, "status 429")]
)
def test_broken_server_fails_the_run_by_name(smoke: Path, tmp_path: Path, manner: str, told: str) -> None:
    out = tmp_path / "out.json"
    with running(FakeServer(manner=manner, num_good=1)) as server:  # well when it is asked before the run
        done = loadtest("--url", server.url, "--workload", smoke, "--json", out)
    assert done.returncode == 2
    assert told in done.stdout
    found = json.loads(out.read_text())
    assert told in found["cannot_measure"]
    assert found["figures"]["success_rate"] == 0


def test_server_that_breaks_now_and_then_misses_the_threshold(smoke: Path) -> None:
    with running(FakeServer(manner=CUT, num_good=40)) as server:
        done = loadtest("--url", server.url, "--workload", smoke, "--threshold", "success_rate>=0.999")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "missed: success_rate" in done.stdout


def test_chunks_are_counted_where_no_usage_is_told(smoke: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    with running(FakeServer(manner=NO_USAGE)) as server:
        done = loadtest("--url", server.url, "--workload", smoke, "--json", out)
    assert done.returncode == 0
    found = json.loads(out.read_text())
    assert found["figures"]["total_output_tokens"] >= 3 * found["figures"]["completed"]
    assert any("tells no usage" in remark for remark in found["remarks"])


def test_missed_threshold_is_status_1(smoke: Path) -> None:
    with running(FakeServer()) as server:
        done = loadtest("--url", server.url, "--workload", smoke, "--threshold", "median_ttft_ms<=0.1")
    assert done.returncode == 1
    assert "missed: median_ttft_ms is" in done.stdout


def test_prompts_that_the_server_knew_make_the_run_invalid(smoke: Path) -> None:
    smoke.write_text(SMOKE + "[repeats]\nshare = 0.4\npopulation = 4\ntolerance = 0.2\n")
    with running(FakeServer()) as server:
        loadtest("--url", server.url, "--workload", smoke)
        done = loadtest("--url", server.url, "--workload", smoke)
        other = loadtest("--url", server.url, "--workload", smoke, "--seed", "2")
    assert done.returncode == 3
    assert "INVALID: the cache answered 100.0%" in done.stdout
    assert other.returncode == 0, other.stdout


def test_dead_target_and_bad_options_are_refused_before_the_run(smoke: Path, tmp_path: Path) -> None:
    done = loadtest("--url", "http://127.0.0.1:9", "--workload", smoke)
    assert (done.returncode, "is dead" in done.stderr) == (2, True)
    done = loadtest("--workload", smoke, "--threshold", "quick", "--body", "x=y", "--json", tmp_path / "no" / "x.json")
    assert done.returncode == 2
    assert all(part in done.stderr for part in ("--threshold 'quick'", "--body 'x=y'", "no such folder"))
    smoke.write_text("[schedule]\nkind = 'constant'\n")
    done = loadtest("--workload", smoke)
    assert done.returncode == 2
    assert all(part in done.stderr for part in ("prompts is missing", "answers is missing"))
    with running(FakeServer(manner=NO_STREAM)) as server:
        done = loadtest("--url", server.url, "--workload", smoke.with_name("smoke2.toml"))
        assert "there is no such file" in done.stderr


def test_page_of_locust_has_our_columns_and_charts(smoke: Path) -> None:
    port = 20000 + time.time_ns() % 20000
    with running(FakeServer(manner=WELL)) as server:
        command = [
            sys.executable,
            "-m",
            "loadtest",
            "run",
            "--url",
            server.url,
            "--workload",
            str(smoke),
            "--web",
            str(port),
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            try:
                page = fetch_when_there(f"http://127.0.0.1:{port}/")
                assert '"Chats"' in page
                assert '"TPOT p50"' in page
                form = f"user_count=1&spawn_rate=1&host={server.url}".encode()
                urllib.request.urlopen(f"http://127.0.0.1:{port}/swarm", form, timeout=10).close()
                row = wait_for_row(f"http://127.0.0.1:{port}/stats/requests")
                assert row["name"] == "all"
                assert row["column4"].endswith(" ms")
                assert "<svg" in fetch_when_there(f"http://127.0.0.1:{port}/charts")
            finally:
                process.terminate()


def fetch_when_there(url: str) -> str:
    for _ in range(100):
        try:
            with urllib.request.urlopen(url, timeout=10) as reply:
                text: str = reply.read().decode()
                return text
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"{url} does not answer")


def wait_for_row(url: str) -> dict[str, str]:
    for _ in range(100):
        (extended,) = json.loads(fetch_when_there(url))["extended_stats"]
        if extended["data"] and extended["data"][-1]["column0"] not in ("0", "-"):
            row: dict[str, str] = extended["data"][-1]
            return row
        time.sleep(0.2)
    raise AssertionError("no row came")
