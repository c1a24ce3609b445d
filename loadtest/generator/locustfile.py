"""What locust runs, in one process or several: `fenhe loadtest run` starts it. A user plays what the workload says;
records go to whoever makes the results, a run ends itself, and its exit status is its verdict's.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import gevent
import msgspec
from locust import User, events, task
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

from loadtest.generator.collector import Collector
from loadtest.generator.load_run import LoadRun, Part
from loadtest.generator.results import lines
from loadtest.generator.web_page import add_pages
from loadtest.measure.figures import e2el_s
from loadtest.measure.record import Record
from loadtest.traffic.reading import workload_from
from loadtest.traffic.schedules import write_trace
from loadtest.traffic.workload import Workload

TELL_EVERY_S = 2.0
SEND_EVERY_S = 1.0
RECORDS, ENDED = "fenhe-records", "fenhe-ended"
"""Messages from workers to the master."""


class Node:
    """What this process has of a run; a new one for each."""

    def __init__(self, environment: Environment) -> None:
        options = environment.parsed_options
        assert options is not None
        assert environment.runner is not None
        self.environment = environment
        self.runner = environment.runner
        self.options = options
        self.workload: Workload = workload_from(json.loads(options.load_workload), "--load-workload")
        self.url = str(environment.host)
        self.collector = Collector(workload=self.workload, seed=options.load_seed, url=self.url)
        self.unsent: list[Record] = []
        self.began_s = time.perf_counter()
        self.run: LoadRun | None = None
        if not isinstance(self.runner, MasterRunner):
            self.run = LoadRun(
                workload=self.workload,
                seed=options.load_seed,
                url=self.url,
                part=self._part(),
                note=self.note,
                ended=self.end,
                key_env=options.load_key_env,
            )

    def _part(self) -> Part:
        if not isinstance(self.runner, WorkerRunner):
            return Part()
        return Part(index=self.runner.worker_index, num_workers=self.options.load_workers)

    def note(self, record: Record) -> None:
        failure = None if record.failure is None else RuntimeError(record.failure)
        self.environment.events.request.fire(
            request_type="chat",
            name=record.task,
            response_time=(e2el_s(record) or record.ended_s - record.sent_s) * 1000,
            response_length=record.num_answer_tokens,
            exception=failure,
            context={},
        )
        if isinstance(self.runner, WorkerRunner):
            self.unsent.append(record)
        else:
            self.collector.note(record)

    def send(self) -> None:
        records, self.unsent = self.unsent, []
        if records:
            self.runner.send_message(RECORDS, {"records": msgspec.to_builtins(records)})

    def end(self) -> None:
        """A worker or the only process: nothing runs any more."""
        assert self.run is not None
        if isinstance(self.runner, WorkerRunner):
            self.send()
            self.runner.send_message(ENDED, {"cpu_share": self.run.cpu_share})
        else:
            self.collector.cpu_shares["the only one"] = self.run.cpu_share
            gevent.spawn(self.conclude)

    def conclude(self) -> None:
        """Where the results are made: tell them, write them down, and end the run."""
        found = self.collector.document()
        print("\n".join(lines(found)), flush=True)
        if self.options.load_json:
            Path(self.options.load_json).write_text(json.dumps(found, indent=1), encoding="utf-8")
        if self.options.load_records:
            encoded = (msgspec.json.encode(record) + b"\n" for record in self.collector.records)
            Path(self.options.load_records).write_bytes(b"".join(encoded))
        if self.options.load_trace_out:
            times = sorted(record.scheduled_s for record in self.collector.records if record.turn == 0)
            write_trace(Path(self.options.load_trace_out), times)
        self.environment.process_exit_code = found["status"]
        if self.options.headless:
            self.runner.quit()
        else:
            self.runner.stop()


node: Node | None = None


class ChatUser(User):
    """Closed loop: one of the concurrent users. Open loop: the one user of a process, who follows the schedule."""

    @task
    def play(self) -> None:
        assert node is not None
        assert node.run is not None
        node.run.play()
        gevent.sleep(3600)


@events.init_command_line_parser.add_listener
def add_options(parser: argparse.ArgumentParser, **_: Any) -> None:
    hidden: dict[str, Any] = {"include_in_web_ui": False}
    parser.add_argument("--load-workload", help="a workload as JSON", **hidden)
    parser.add_argument("--load-seed", type=int, default=1, **hidden)
    parser.add_argument("--load-workers", type=int, default=1, **hidden)
    parser.add_argument("--load-key-env", **hidden)
    parser.add_argument("--load-json", **hidden)
    parser.add_argument("--load-records", **hidden)
    parser.add_argument("--load-trace-out", **hidden)


@events.init.add_listener
def set_up(environment: Environment, **_: Any) -> None:
    runner = environment.runner
    if isinstance(runner, MasterRunner):
        runner.register_message(RECORDS, take_records)
        runner.register_message(ENDED, note_ended)
    if environment.web_ui is not None:
        add_pages(environment.web_ui, lambda: None if node is None else node.collector)


@events.test_start.add_listener
def begin(environment: Environment, **_: Any) -> None:
    global node  # noqa: PLW0603  # locust's listeners share nothing else
    node = Node(environment)
    if isinstance(node.runner, WorkerRunner):
        gevent.spawn(_send_now_and_then, node)
    elif environment.parsed_options is not None and environment.parsed_options.headless:
        gevent.spawn(_tell_now_and_then, node)


@events.test_stop.add_listener
def end(environment: Environment, **_: Any) -> None:
    if node is not None and node.run is not None:
        node.run.stop()


def take_records(environment: Environment, msg: Any, **_: Any) -> None:
    assert node is not None
    node.collector.records += msgspec.convert(msg.data["records"], list[Record])


def note_ended(environment: Environment, msg: Any, **_: Any) -> None:
    assert node is not None
    node.collector.cpu_shares[msg.node_id] = msg.data["cpu_share"]
    if len(node.collector.cpu_shares) == node.options.load_workers:
        gevent.spawn(node.conclude)


def _send_now_and_then(mine: Node) -> None:
    while mine is node:
        gevent.sleep(SEND_EVERY_S)
        mine.send()


def _tell_now_and_then(mine: Node) -> None:
    while mine is node and mine.environment.process_exit_code is None:
        gevent.sleep(TELL_EVERY_S)
        run = mine.run
        now_s = time.perf_counter() - mine.began_s if run is None else run.now_s()
        print(mine.collector.progress(now_s), file=sys.stderr, flush=True)
