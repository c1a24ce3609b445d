"""`fenhe loadtest run`: reads the workload, checks the target, and becomes locust."""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loadtest.generator.preflight import PATIENCE_S, TargetError, check_target
from loadtest.measure.figures import figure_names
from loadtest.measure.verdict import Status
from loadtest.traffic.reading import WorkloadError, as_json, read_workload, shipped_names
from loadtest.traffic.schedules import read_trace
from loadtest.traffic.sessions import SessionPlan
from loadtest.traffic.workload import Workload

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
STATUSES = (
    "exit status: 0 good; 1 a threshold of the workload was missed; 2 the target, the workload or the options cannot "
    "be used, or most requests failed; 3 the run is invalid: too many sessions began late, the generator was short "
    "of its core, or the cache answered another share than the workload's"
)
_THRESHOLD = re.compile(r"([a-z0-9_.]+)\s*(<=|>=)\s*([\d.]+)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Put load on a server that speaks OpenAI's API, and measure what its users see."
    parser.epilog = STATUSES
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="default: %(default)s")
    parser.add_argument(
        "--workload",
        default="headline",
        help=f"a TOML file, or one of {', '.join(shipped_names())} (default: headline)",
    )
    parser.add_argument("--model", help="what requests ask for, instead of the workload's model")
    parser.add_argument(
        "--rate", type=float, metavar="N", help="open loop: so many sessions per second, as a Poisson process"
    )
    parser.add_argument("--concurrency", type=int, metavar="N", help="closed loop: so many users")
    parser.add_argument("--warm-up", type=float, metavar="S", help="seconds that are not measured")
    parser.add_argument("--duration", type=float, metavar="S", help="seconds that are")
    parser.add_argument("--drain", type=float, metavar="S", help="the longest that a request may take")
    parser.add_argument("--prompt-tokens", type=int, metavar="N", help="all prompts about that long")
    parser.add_argument("--answer-tokens", type=int, metavar="N", help="all answers that long")
    parser.add_argument("--seed", type=int, metavar="N", help="default: the first of the workload's")
    parser.add_argument(
        "--threshold", action="append", default=[], metavar="'FIGURE<=X'", help="beside the workload's; or >="
    )
    parser.add_argument(
        "--body", action="append", default=[], metavar="KEY=JSON", help="a field for every request's body"
    )
    parser.add_argument("--key-env", metavar="VARIABLE", help="the variable that has the server's API key")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here")
    parser.add_argument(
        "--trace-out", type=Path, metavar="FILE", help="write when sessions began, for a schedule of kind trace"
    )
    parser.add_argument("--records", type=Path, metavar="FILE", help="write every request, a line of JSON each")
    spread = parser.add_argument_group("several generators")
    spread.add_argument("--processes", type=int, default=1, metavar="N", help="generator processes on this machine")
    spread.add_argument("--master", type=int, metavar="N", help="wait for N workers on other machines, and lead them")
    spread.add_argument("--worker", metavar="HOST", help="be a worker of the master on that machine")
    spread.add_argument("--master-port", type=int, default=5557, metavar="PORT", help="default: %(default)s")
    parser.add_argument(
        "--web", type=int, nargs="?", const=8089, metavar="PORT", help="start and watch it in locust's web page"
    )


def run(options: argparse.Namespace) -> int:
    try:
        workload = workload_of(options)
        check(options, workload)
    except (WorkloadError, TargetError) as error:
        print(f"fenhe loadtest: {error}", file=sys.stderr)
        return Status.CANNOT_MEASURE
    return become_locust(locust_arguments(options, workload))


def workload_of(options: argparse.Namespace) -> Workload:
    """The workload's file with what the options change.

    Raises: WorkloadError.
    """
    changes: dict[str, Any] = {"schedule": _schedule(options)}
    for table, length in (("prompts", options.prompt_tokens), ("answers", options.answer_tokens)):
        if length is not None:
            changes[table] = {"tokens": {"median": length, "least": length, "most": length}}
    if options.model is not None:
        changes["model"] = options.model
    problems: list[str] = []
    changes["thresholds"] = dict(_threshold(text, problems) for text in options.threshold)
    changes["body"] = dict(_field(text, problems) for text in options.body)
    if options.rate is not None and options.concurrency is not None:
        problems.append("--rate is an open loop and --concurrency a closed one: give one of them")
    if options.json is not None and not options.json.absolute().parent.is_dir():
        problems.append(f"--json {options.json}: there is no such folder")
    if options.key_env is not None and options.key_env not in os.environ:
        problems.append(f"--key-env {options.key_env}: the variable is not set")
    if problems:
        raise WorkloadError("options", problems)
    workload = read_workload(options.workload, changes, figure_names())
    if workload.schedule.trace is not None:
        read_trace(Path(workload.schedule.trace))
    return workload


def _schedule(options: argparse.Namespace) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    if options.rate is not None:
        changed = {"kind": "poisson", "rate": options.rate, "concurrency": None, "trace": None}
    elif options.concurrency is not None:
        changed = {"kind": "closed", "concurrency": options.concurrency, "rate": None, "trace": None}
    if options.warm_up is not None:
        changed["warm_up_s"] = options.warm_up
    if options.duration is not None:
        changed["duration_s"] = options.duration
    if options.drain is not None:
        changed["drain_s"] = options.drain
    return changed


def _threshold(text: str, problems: list[str]) -> tuple[str, dict[str, float]]:
    found = _THRESHOLD.fullmatch(text.strip())
    if found is None:
        problems.append(f"--threshold {text!r}: give a figure, <= or >=, and a number")
        return text, {}
    return found[1], {"most" if found[2] == "<=" else "least": float(found[3])}


def _field(text: str, problems: list[str]) -> tuple[str, Any]:
    import json

    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        problems.append(f"--body {text!r}: what follows = is no JSON")
        return name, None


def check(options: argparse.Namespace, workload: Workload) -> None:
    """Raises: WorkloadError, TargetError."""
    num_workers = options.master or options.processes
    concurrency = workload.schedule.concurrency
    if concurrency is not None and concurrency < num_workers:
        raise WorkloadError("options", [f"{num_workers} generators cannot share {concurrency} users"])
    if options.worker is None:
        plan = SessionPlan(workload, seed_of(options, workload))
        headers = {} if options.key_env is None else {"authorization": f"Bearer {os.environ[options.key_env]}"}
        check_target(options.url, plan.body(plan.session(-1), 0, []), headers, PATIENCE_S)


def seed_of(options: argparse.Namespace, workload: Workload) -> int:
    return workload.seeds[0] if options.seed is None else int(options.seed)


def locust_arguments(options: argparse.Namespace, workload: Workload) -> list[str]:
    """The command line of locust for this run."""
    num_workers = options.master or options.processes
    arguments = ["--locustfile", str(LOCUSTFILE), "--host", options.url, "--load-workload", as_json(workload)]
    arguments += ["--load-seed", str(seed_of(options, workload)), "--load-workers", str(num_workers)]
    for name, value in (("json", options.json), ("trace-out", options.trace_out)):
        arguments += [] if value is None else [f"--load-{name}", str(value)]
    for name, value in (("records", options.records), ("key-env", options.key_env)):
        arguments += [] if value is None else [f"--load-{name}", str(value)]
    users = str(workload.schedule.concurrency or num_workers)
    arguments += ["--users", users, "--spawn-rate", users, "--only-summary", "--skip-log-setup"]
    arguments += ["--web-host", "127.0.0.1", "--web-port", str(options.web)] if options.web else ["--headless"]
    if options.worker is not None:
        return ["--locustfile", str(LOCUSTFILE), "--worker", "--master-host", options.worker, *_port(options, "master")]
    if options.master is not None:
        arguments += ["--master", "--expect-workers", str(options.master), *_port(options, "master-bind")]
    elif options.processes > 1:
        arguments += ["--processes", str(options.processes), "--expect-workers", str(options.processes)]
        arguments += ["--master-bind-host", "127.0.0.1", *_port(options, "master-bind"), *_port(options, "master")]
    return arguments


def _port(options: argparse.Namespace, which: str) -> list[str]:
    return [f"--{which}-port", str(options.master_port)]


def become_locust(arguments: Sequence[str]) -> int:
    """Does not return when locust is there. A process of its own, for locust exchanges parts of Python's library."""
    from importlib.util import find_spec

    if find_spec("locust") is None:
        print("fenhe loadtest: locust is not installed: pip install 'fenhe[loadtest]'", file=sys.stderr)
        return Status.CANNOT_MEASURE
    sys.stdout.flush()
    return os.execv(sys.executable, [sys.executable, "-m", "locust", *arguments])
