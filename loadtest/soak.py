"""`python -m loadtest.soak`: tens of thousands of requests of every kind, valid and invalid, then a server check.

A clean run has no wrong answer and leaves resident memory flat after warm-up, nothing running or queued, no slot or KV
held, and every accepted sequence ended exactly once.
"""

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from loadtest.aftermath import aftermath
from loadtest.ledger import Ledger, Outcome
from loadtest.redis_process import BINARY, redis_server
from loadtest.served import ADMIN_KEY, KEYED, ServedProcess
from loadtest.soak_client import send
from loadtest.soak_faults import GOOD_SETTINGS, DamagedStudent, Reload, send_fault
from loadtest.soak_kinds import Drawn, Sent, draw
from loadtest.soak_students import DamagedStudents

NUM_REQUESTS = 50_000
NUM_CLIENTS = 24
WARM_UP_SHARE = 0.3
MAX_GROWTH = 0.05
NUM_SAMPLES = 100
SETTINGS = {
    "FENHE_ENGINE__PREFIX_CACHE_BYTES": str(64 * 1024 * 1024),
    "FENHE_CACHE__MAX_BYTES": str(4 * 1024 * 1024),
    "FENHE_LOG_LEVEL": "warning",
    **KEYED,
}
"""The caches are small enough to be full before the warm-up ends, so memory that grows later is a leak."""
FILES_PER_CLIENT = 2
"""A connection of its own, and one to Redis."""
REDIS_OPTIONS = ("--maxmemory", "16mb", "--maxmemory-policy", "allkeys-lru")


@dataclass(slots=True, kw_only=True, frozen=True)
class Options:
    num_requests: int = NUM_REQUESTS
    num_clients: int = NUM_CLIENTS
    seed: int = 0
    student: Path | None = None
    json_file: Path | None = None


@dataclass(slots=True, kw_only=True)
class Memory:
    """Resident bytes over the run, sampled at equal shares of the requests."""

    samples: list[int] = field(default_factory=list)

    def growth(self) -> float:
        """The relative growth from the first tenth after the warm-up to the last tenth, by medians, because allocators
        take and return memory in between."""
        tenth = max(len(self.samples) // 10, 1)
        begin = int(len(self.samples) * WARM_UP_SHARE)
        before, after = self.samples[begin : begin + tenth], self.samples[-tenth:]
        return statistics.median(after) / statistics.median(before) - 1 if before else 0.0


@dataclass(slots=True, kw_only=True)
class Soak:
    """`settings_file` is what a reload reads again."""

    options: Options
    server: ServedProcess
    url: str
    settings_file: Path
    damaged: DamagedStudents
    ledger: Ledger = field(default_factory=Ledger)
    memory: Memory = field(default_factory=Memory)
    _left: int = 0
    _reloading: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def run(self) -> None:
        self._left = self.options.num_requests
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=self.options.num_clients * 4)
        async with httpx.AsyncClient(base_url=self.url, timeout=None, limits=limits) as client:
            tasks = [self._work(client, random.Random(f"{self.options.seed}-{i}")) for i in self._clients()]
            await asyncio.gather(*tasks)

    def _clients(self) -> range:
        return range(self.options.num_clients)

    async def _work(self, client: httpx.AsyncClient, rng: random.Random) -> None:
        while self._left > 0 and self.server.is_alive:
            kind, drawn = draw(rng)
            copies = drawn.copies if isinstance(drawn, Sent) else 1
            self._left -= copies
            for outcome in await asyncio.gather(*(self._send(client, drawn) for _ in range(copies))):
                self._note(kind, outcome)

    async def _send(self, client: httpx.AsyncClient, drawn: Drawn) -> Outcome:
        if isinstance(drawn, Sent):
            return await send(client, drawn)
        if isinstance(drawn, Reload):
            return await self._reload(client, drawn)
        if isinstance(drawn, DamagedStudent):
            return await self.damaged.add_one(client)
        address = urlsplit(self.url)
        assert address.hostname is not None
        assert address.port is not None
        return await send_fault(address.hostname, address.port, drawn)

    async def _reload(self, client: httpx.AsyncClient, reload: Reload) -> Outcome:
        async with self._reloading:
            self.settings_file.write_text(reload.text)
            allowed = frozenset({200 if reload.is_good else 400})
            return await send(client, Sent(path="/admin/reload", body=b"", key=ADMIN_KEY, allowed=allowed))

    def _note(self, kind: str, outcome: Outcome) -> None:
        self.ledger.note(kind, outcome)
        step = max(self.options.num_requests // NUM_SAMPLES, 1)
        if self.ledger.num_requests % step == 0 and self.server.is_alive:
            self.memory.samples.append(self.server.resident_bytes())
            if len(self.memory.samples) % 10 == 0:
                print(f"{self.ledger.num_requests} requests, {self.memory.samples[-1] >> 20} MiB", flush=True)


def run(options: Options) -> int:
    """Returns 0 when nothing went wrong."""
    folder = Path(tempfile.mkdtemp(prefix="fenhe-soak-"))
    with contextlib.ExitStack() as stack:
        cache = None if BINARY is None else stack.enter_context(redis_server(folder, *REDIS_OPTIONS))
        report = _soaked(options, folder, cache)
    print(_text(report))
    if options.json_file is not None:
        options.json_file.write_text(json.dumps(report, indent=1))
    return 1 if report["problems"] else 0


def _soaked(options: Options, folder: Path, cache_url: str | None) -> dict[str, object]:
    settings_file, log = folder / "settings.toml", folder / "server.log"
    settings_file.write_text(GOOD_SETTINGS)
    settings = SETTINGS | {"FENHE_CONFIG": str(settings_file)} | _cache_settings(cache_url)
    arguments = [] if options.student is None else ["--student", str(options.student)]
    server = ServedProcess(settings, log, arguments)
    try:
        soak = Soak(
            options=options,
            server=server,
            url=server.wait_for_url(),
            settings_file=settings_file,
            damaged=DamagedStudents(folder=folder / "student"),
        )
        files_before = server.num_open_files()
        begun_s = time.monotonic()
        asyncio.run(soak.run())
        seconds = time.monotonic() - begun_s
        problems = _problems(soak, files_before)
    finally:
        status = server.stop()
    if status != 0:
        problems.append(f"the server ended with status {status}; its log: {log}")
    return _report(soak, seconds, problems) | {"redis": cache_url is not None}


def _cache_settings(url: str | None) -> dict[str, str]:
    """A Redis on a busy machine may take longer than the server would wait for it in service."""
    return {} if url is None else {"FENHE_CACHE__URL": url, "FENHE_CACHE__TIMEOUT_S": "1"}


def _problems(soak: Soak, files_before: int) -> list[str]:
    problems = list(soak.ledger.examples)
    hidden = soak.ledger.num_problems - len(problems)
    problems += [f"and {hidden} more of that kind"] if hidden else []
    if not soak.server.is_alive:
        return [*problems, f"the server died; the end of its log:\n{soak.server.log_end()}"]
    problems += aftermath(soak.url)
    growth = soak.memory.growth()
    if growth > MAX_GROWTH:
        problems.append(f"resident memory grew by {growth:.1%} after warm-up, more than {MAX_GROWTH:.0%}")
    more_files = soak.server.num_open_files() - files_before
    if more_files > soak.options.num_clients * FILES_PER_CLIENT:
        problems.append(f"{more_files} more files are open than before")
    return problems


def _report(soak: Soak, seconds: float, problems: list[str]) -> dict[str, object]:
    return {
        "options": {name: str(value) for name, value in asdict(soak.options).items()},
        "requests": soak.ledger.num_requests,
        "seconds": round(seconds, 1),
        "kinds": [{"kind": kind, "requests": count, "outcomes": ends} for kind, count, ends in soak.ledger.table()],
        "cache": dict(soak.ledger.cache),
        "memory_mib": [sample >> 20 for sample in soak.memory.samples],
        "memory_growth": round(soak.memory.growth(), 4),
        "problems": problems,
    }


def _text(report: dict[str, object]) -> str:
    kinds = report["kinds"]
    assert isinstance(kinds, list)
    where = "in Redis" if report["redis"] else "in the process: there is no Redis or Valkey here"
    lines = [f"{report['requests']} requests in {report['seconds']} s, cache {report['cache']}, {where}"]
    lines += [f"  {row['kind']:<16} {row['requests']:>6}  {row['outcomes']}" for row in kinds]
    lines.append(f"resident memory after warm-up: {report['memory_growth']:+.2%} (bound {MAX_GROWTH:.0%})")
    problems = report["problems"]
    assert isinstance(problems, list)
    lines += [f"PROBLEM {problem}" for problem in problems] or ["clean"]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.soak", description=__doc__)
    parser.add_argument("--requests", type=int, default=NUM_REQUESTS, help="how many (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=NUM_CLIENTS, help="at once (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--student", type=Path, default=None, metavar="DIR", help="default: the default student")
    parser.add_argument("--json", type=Path, default=None, metavar="OUT", help="write the report here too")
    given = parser.parse_args()
    return run(
        Options(
            num_requests=given.requests,
            num_clients=given.clients,
            seed=given.seed,
            student=given.student,
            json_file=given.json,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
