"""`python -m loadtest.restarts`: requests through a server whose upstreams are killed, started again and frozen.

One `fenhe serve` with a remote student, two others as its upstreams. Every so many seconds one of them is killed, or
frozen for a while (SIGSTOP), in turns, without warning. Each request must be answered whole, or refused in words; none
may be lost or told twice, and nothing may be left in the server afterwards. A client that is refused waits as long as
it is told to before it sends its next request.
"""

import argparse
import asyncio
import itertools
import json
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from loadtest.ledger import Ledger, Outcome
from loadtest.served import ADMIN_KEY, ServedProcess, folder_until_the_end, free_port

NUM_TOKENS = 16
PATIENCE_S = 60.0
NUM_WARM = 100
LEAK_BYTES = 24 << 20
FROZEN_S = 10.0
SETTINGS = """
[router]
enabled = false
[cache]
enabled = false
[[student]]
name = "far"
engine = "remote"
[student.remote]
urls = {urls}
model = "smollm2-135m"
pause_s = 1.0
health_interval_s = 1.0
first_token_timeout_s = 6.0
token_timeout_s = 4.0
"""


@dataclass(slots=True)
class Upstream:
    """A `fenhe serve` on a port that stays the same over its lives."""

    folder: Path
    number: int
    port: int
    num_lives: int = 0
    process: ServedProcess | None = None
    num_kills: int = 0
    num_freezes: int = 0

    def start(self) -> None:
        self.num_lives += 1
        log = self.folder / f"upstream-{self.number}-{self.num_lives}.log"
        settings = {"FENHE_ENGINE__NUM_THREADS": "1"}
        self.process = ServedProcess(settings, log, ["--port", str(self.port)])

    def kill(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(10.0)
        self.num_kills += 1

    async def freeze(self) -> None:
        assert self.process is not None
        self.num_freezes += 1
        os.kill(self.process.pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(FROZEN_S)
        finally:
            os.kill(self.process.pid, signal.SIGCONT)


@dataclass(slots=True)
class Run:
    """What one run has come to."""

    ledger: Ledger = field(default_factory=Ledger)
    warm_bytes: int = 0
    end_bytes: int = 0
    warm_files: int = 0
    end_files: int = 0


async def ask(client: httpx.AsyncClient, number: int) -> Outcome:
    """One request, as a stream or whole, and what became of it."""
    is_stream = number % 2 == 0
    body = {
        "model": "far",
        "messages": [{"role": "user", "content": f"Request {number}: name a colour."}],
        "max_tokens": NUM_TOKENS,
        "ignore_eos": True,
        "stream": is_stream,
    }
    try:
        async with asyncio.timeout(PATIENCE_S):
            response = await client.post("/v1/chat/completions", json=body)
    except TimeoutError:
        return Outcome(what="lost", problem=f"request {number}: nothing came within {PATIENCE_S:g} s")
    except httpx.HTTPError as error:
        return Outcome(what="broken", problem=f"request {number}: {type(error).__name__}: {error}")
    if response.status_code in (429, 503):
        return await _judge_refusal(number, response)
    if response.status_code != 200:
        return Outcome(what=str(response.status_code), problem=f"request {number}: {response.text[:300]}")
    return _judge_stream(number, response.text) if is_stream else _judge_whole(number, response.json())


async def _judge_refusal(number: int, response: httpx.Response) -> Outcome:
    is_clear = "retry-after" in response.headers and response.json()["error"]["message"]
    problem = None if is_clear else f"request {number}: {response.status_code} without a reason or Retry-After"
    await asyncio.sleep(float(response.headers.get("retry-after", 0)))
    return Outcome(what=f"refused {response.status_code}", problem=problem)


def _judge_whole(number: int, body: dict[str, Any]) -> Outcome:
    found = body["usage"]["completion_tokens"]
    problem = None if found == NUM_TOKENS else f"request {number}: {found} tokens instead of {NUM_TOKENS}"
    return Outcome(what="answered", problem=problem)


def _judge_stream(number: int, text: str) -> Outcome:
    events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    chunks = [json.loads(event) for event in events if event != "[DONE]"]
    if "error" in chunks[-1]:
        return Outcome(what="broken off with an error")
    ends = [chunk["choices"][0]["finish_reason"] for chunk in chunks if chunk["choices"][0]["finish_reason"]]
    num_texts = sum(bool(chunk["choices"][0]["delta"].get("content")) for chunk in chunks)
    is_one = ends == ["length"] and events.count("[DONE]") == 1 and num_texts <= NUM_TOKENS
    problem = (
        None if is_one else f"request {number}: ends {ends}, {num_texts} texts, {events.count('[DONE]')} end marks"
    )
    return Outcome(what="answered", problem=problem)


async def _send_all(client: httpx.AsyncClient, numbers: range, num_at_once: int, ledger: Ledger) -> None:
    waiting = iter(numbers)

    async def worker() -> None:
        for number in waiting:
            ledger.note("request", await ask(client, number))
            done = ledger.num_requests
            if done % 200 == 0:
                print(f"{done} requests, {ledger.num_problems} problems", file=sys.stderr, flush=True)

    await asyncio.gather(*(worker() for _ in range(num_at_once)))


async def _break_in_turns(upstreams: list[Upstream], every_s: float) -> None:
    first, second = upstreams
    for upstream, is_killed in itertools.cycle([(first, True), (second, False), (second, True), (first, False)]):
        await asyncio.sleep(every_s)
        if is_killed:
            upstream.kill()
            upstream.start()
        else:
            await upstream.freeze()


async def _check_end(client: httpx.AsyncClient, ledger: Ledger) -> None:
    """Nothing may be left of the requests."""
    state = (await client.get("/debug/state", headers={"authorization": f"Bearer {ADMIN_KEY}"})).json()
    student = state["students"][0]
    left = {name: student[name] for name in ("running", "waiting", "integrity") if student[name]}
    if left or student["door"]["num_running"]:
        ledger.add_problem(f"left in the server: {left}, {student['door']}")


async def drive(front: ServedProcess, url: str, upstreams: list[Upstream], options: argparse.Namespace) -> Run:
    run = Run()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=None, limits=limits) as client:
        await _send_all(client, range(NUM_WARM), options.at_once, run.ledger)
        run.warm_bytes, run.warm_files = front.resident_bytes(), front.num_open_files()
        breaking = asyncio.create_task(_break_in_turns(upstreams, options.every))
        await _send_all(client, range(NUM_WARM, options.requests), options.at_once, run.ledger)
        breaking.cancel()
        await asyncio.wait([breaking])
        await asyncio.sleep(2.0)
        await _check_end(client, run.ledger)
        run.end_bytes, run.end_files = front.resident_bytes(), front.num_open_files()
    if run.end_bytes > run.warm_bytes + LEAK_BYTES:
        run.ledger.add_problem(f"memory grew from {run.warm_bytes >> 20} to {run.end_bytes >> 20} MiB")
    return run


def main(arguments: list[str] | None = None) -> int:
    """0: every request was answered whole or refused in words, and nothing was left."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.restarts", description=__doc__)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--every", type=float, default=20.0, metavar="SECONDS", help="between two kills")
    parser.add_argument("--at-once", type=int, default=8, metavar="N", help="requests at once")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    with folder_until_the_end("fenhe-restarts-") as folder:
        upstreams = [Upstream(folder, number, free_port()) for number in range(2)]
        for upstream in upstreams:
            upstream.start()
        processes = [upstream.process for upstream in upstreams if upstream.process is not None]
        for process in processes:
            process.wait_for_url()
        settings = folder / "front.toml"
        urls = [f"http://127.0.0.1:{upstream.port}/v1" for upstream in upstreams]
        settings.write_text(SETTINGS.format(urls=json.dumps(urls)))
        front = ServedProcess({}, folder / "front.log", ["--config", str(settings)])
        began_s = time.monotonic()
        try:
            run = asyncio.run(drive(front, front.wait_for_url(), upstreams, options))
        finally:
            for one in (front, *(upstream.process for upstream in upstreams)):
                if one is not None:
                    one.stop()
    return _report(run, upstreams, time.monotonic() - began_s, options.json)


def _report(run: Run, upstreams: list[Upstream], seconds: float, file: Path | None) -> int:
    ledger = run.ledger
    found: dict[str, Any] = {
        "requests": ledger.num_requests,
        "kills": sum(upstream.num_kills for upstream in upstreams),
        "freezes": sum(upstream.num_freezes for upstream in upstreams),
        "seconds": round(seconds),
        "outcomes": {what: count for (_, what), count in ledger.outcomes.items()},
        "memory_mib": [run.warm_bytes >> 20, run.end_bytes >> 20],
        "files": [run.warm_files, run.end_files],
        "problems": ledger.num_problems,
    }
    print(*(f"{name}: {value}" for name, value in found.items()), *ledger.examples, sep="\n")
    if file is not None:
        file.write_text(json.dumps(found | {"examples": ledger.examples}, indent=2))
    return 1 if ledger.num_problems else 0


if __name__ == "__main__":
    sys.exit(main())
