"""The generator of delays: what it saw of a server that streams well or badly."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from loadtest.generator.timed_streams import TimedRun, orders
from loadtest.measure.record import Record
from loadtest.traffic.reading import read_workload
from loadtest.traffic.sessions import SessionPlan
from tests.loadtest.fake_server import BUSY, CUT, EMPTY, ERROR, SILENT, WELL, FakeServer, running


def play(server: FakeServer, num_streams: int = 3, end_s: float = 1.0, drain_s: float = 10.0) -> list[Record]:
    plan = SessionPlan(read_workload("overhead"), 1)
    run = TimedRun(
        url=server.url,
        orders=orders(plan, server.url),
        num_streams=num_streams,
        ramp_s=0.1,
        end_s=end_s,
        drain_s=drain_s,
    )
    run.play()
    return run.records


def test_streams_run_one_after_the_other_and_every_token_is_seen() -> None:
    with running(FakeServer(first_s=0.02, gap_s=0.001, line_end="\r\n")) as server:
        records = play(server)
    assert len(records) == len(server.bodies) > 3
    for record in records:
        assert record.is_complete
        assert record.first_s is not None
        assert record.first_s - record.sent_s > 0.019  # the server waits 20 ms
        assert record.num_prompt_tokens == 30
        assert sum(record.gaps_s) == pytest.approx((record.last_s or 0) - record.first_s)
        assert record.ended_s >= (record.last_s or 0)
    texts = [str(body["messages"]) for body in server.bodies]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize(
    ("manner", "told"),
    [
        (CUT, "the connection was closed"),
        (ERROR, "error in the stream"),
        (BUSY, "status 429"),
        (EMPTY, "the stream had no content"),
    ],
)
def test_broken_streams_are_told_and_followed_by_the_next(manner: str, told: str) -> None:
    with running(FakeServer(manner=manner, num_good=2)) as server:
        records = play(server, num_streams=1)
    failed = [record.failure or "" for record in records if not record.is_complete]
    assert len(failed) > 1
    assert all(told in failure for failure in failed)


def test_request_that_never_ends_has_failed() -> None:
    with running(FakeServer(manner=SILENT)) as server:
        records = play(server, num_streams=2, end_s=0.3, drain_s=0.2)
    assert [record.failure for record in records] == ["no end within 0.2 s after the last request began"] * 2


def test_command_writes_records_and_names_a_dead_server(tmp_path: Path) -> None:
    out = tmp_path / "records"
    command = [
        sys.executable,
        "-m",
        "loadtest.generator.timed_streams",
        "--workload",
        "overhead",
        "--records",
        str(out),
    ]
    command += ["--streams", "2", "--ramp", "0.1", "--end", "0.5", "--prepare", "4", "--url"]
    with running(FakeServer(manner=WELL)) as server:
        done = subprocess.run([*command, server.url], capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    assert set(msgspec.json.decode(done.stdout)) == {"generator_cpu_share"}
    assert all(msgspec.json.decode(line, type=Record).is_complete for line in out.read_bytes().splitlines())
    done = subprocess.run([*command, server.url], capture_output=True, text=True, timeout=90, check=False)
    assert (done.returncode, "cannot be reached" in done.stderr) == (2, True)
