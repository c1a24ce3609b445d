"""`python -m loadtest.isolation`: how long a tenant's stream pauses between two tokens: alone, beside each attack of
`loadtest.chaos`, and beside an honest tenant with 32 long streams.

A pause is what the client sees between two events of one stream. Aims: the 99th percentile beside an attack is at most
twice that alone; beside the honest tenant at most twice that alone, which is the fair share of one of two, plus one
step of the full batch. Missed aims are shown; they are no failure, for short runs vary.
"""

import argparse
import asyncio
import json
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from loadtest.chaos.bodies import BODIES, chat
from loadtest.chaos.framing import FRAMING
from loadtest.chaos.sharing import SHARING
from loadtest.chaos.trial import Trial, attempt, trial
from loadtest.served import TENANT_KEYS, folder_until_the_end
from loadtest.soak_kinds import CHAT

AIM_RATIO = 2.0
NUM_STREAMS = 32
HEADINGS = ("beside", "gaps", "p50", "p99", "x alone", "aim", "")


@dataclass(slots=True, kw_only=True, frozen=True)
class Beside:
    """Another tenant's gaps beside something. `aim_ms` None: nothing to compare with."""

    name: str
    num_gaps: int
    p50_ms: float | None
    p99_ms: float | None
    alone_ms: float | None = None
    aim_ms: float | None = None
    failures: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        if self.failures:
            return f"not answered: {self.failures[0]}"
        if self.p99_ms is None:
            return "no gap was seen"
        return "" if self.aim_ms is None or self.p99_ms <= self.aim_ms else "beyond the aim"


def beside(name: str, seen: dict[str, Any], alone_ms: float | None = None, aim_ms: float | None = None) -> Beside:
    return Beside(
        name=name,
        num_gaps=seen["num_gaps"],
        p50_ms=seen["p50_gap_ms"],
        p99_ms=seen["p99_gap_ms"],
        alone_ms=alone_ms,
        aim_ms=aim_ms,
        failures=tuple(seen["failures"]),
    )


def measure(student: Path | None, folder: Path, seconds: float, only: str) -> Iterator[Beside]:
    with trial(student, folder / "server.log", TENANT_KEYS[1]) as one:
        alone = _alone(one, seconds)
        yield alone
        if alone.p99_ms is None:
            return
        for attack in (*FRAMING, *BODIES, *SHARING):
            if re.search(only, attack.name):
                one.watcher.take()
                end_s = time.monotonic() + seconds
                while time.monotonic() < end_s:
                    attempt(attack, one.target)
                yield beside(attack.name, one.watcher.take(), alone.p99_ms, AIM_RATIO * alone.p99_ms)
        yield _beside_honest(one, seconds, alone.p99_ms)


def _alone(one: Trial, seconds: float) -> Beside:
    one.watcher.take()
    time.sleep(seconds)
    return beside("nobody (alone)", one.watcher.take())


def _beside_honest(one: Trial, seconds: float, alone_ms: float) -> Beside:
    seen, step_ms = asyncio.run(_beside_streams(one, seconds))
    return beside(f"{NUM_STREAMS} long streams", seen, alone_ms, AIM_RATIO * alone_ms + step_ms)


async def _beside_streams(one: Trial, seconds: float) -> tuple[dict[str, Any], float]:
    """The tenant's stream with the most tokens tells how long a step of the full batch is, in milliseconds: others wait
    with their prompts, or pause for the other tenant."""
    headers = {"authorization": f"Bearer {one.target.key}"}
    limits = httpx.Limits(max_connections=NUM_STREAMS)
    events_s: list[list[float]] = [[] for _ in range(NUM_STREAMS)]
    async with httpx.AsyncClient(base_url=one.target.url, headers=headers, timeout=120.0, limits=limits) as client:
        tasks = [asyncio.create_task(_read_on(client, number, times)) for number, times in enumerate(events_s)]
        await asyncio.sleep(seconds / 3)
        one.watcher.take()
        for times in events_s:
            times.clear()
        await asyncio.sleep(seconds)
        seen, longest = one.watcher.take(), max(events_s, key=len)
        steps_s = [later - earlier for earlier, later in pairwise(longest)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return seen, 1000 * median(steps_s) if steps_s else 0.0


async def _read_on(client: httpx.AsyncClient, number: int, events_s: list[float]) -> None:
    body = chat(f"Tell me about the river {number}.", max_tokens=1000, ignore_eos=True, stream=True)
    while True:
        async with client.stream("POST", CHAT, json=body) as response:
            async for _ in response.aiter_raw():
                events_s.append(time.monotonic())  # noqa: PERF401 - read while it grows


def cells(row: Beside) -> list[str]:
    def shown(figure: float | None, unit: str = " ms") -> str:
        return "" if figure is None else f"{figure:.1f}{unit}"

    ratio = None if row.p99_ms is None or not row.alone_ms else row.p99_ms / row.alone_ms
    return [
        row.name,
        str(row.num_gaps),
        shown(row.p50_ms),
        shown(row.p99_ms),
        shown(ratio, ""),
        shown(row.aim_ms),
        row.verdict,
    ]


def run(rows: Iterator[Beside], json_file: Path | None) -> int:
    done = []
    print(f"| {' | '.join(HEADINGS)} |\n|{'---|' * len(HEADINGS)}", flush=True)
    for row in rows:
        done.append(row)
        print(f"| {' | '.join(cells(row))} |", flush=True)
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(row) for row in done], indent=1))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.isolation", description=__doc__)
    parser.add_argument("--student", type=Path, default=None, metavar="DIR", help="default: the default student")
    parser.add_argument("--seconds", type=float, default=10.0, help="beside each attack (default: %(default)s)")
    parser.add_argument("--only", default="", metavar="PATTERN", help="only attacks that have this in their name")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write the rows here too")
    given = parser.parse_args()
    with folder_until_the_end("fenhe-isolation-") as folder:
        return run(measure(given.student, folder, given.seconds, given.only), given.json)


if __name__ == "__main__":
    sys.exit(main())
