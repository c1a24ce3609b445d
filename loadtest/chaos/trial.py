"""One server under attack: the control before, each attack with what is measured beside it, what is left behind."""

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from loadtest.aftermath import aftermath
from loadtest.chaos.attack import Attack, Observation, Target
from loadtest.chaos.bodies import chat, post_all, prose
from loadtest.chaos.caches import cached_bytes
from loadtest.chaos.framing import ACCENTED_KEY
from loadtest.chaos.limits import bodies_of, see_pages
from loadtest.chaos.processes import wait_ready
from loadtest.chaos.verdict import Gap, Memory, Row, judge
from loadtest.served import TENANT_KEYS, ServedProcess, keyed
from loadtest.soak_kinds import CHAT
from loadtest.watcher import Watcher

CONTROL_S = 3.0
IDLE_S = 30.0
NUM_TRIES = 3
"""A gap that is too long is measured again: what the attack causes comes back, what the machine did does not."""
SAMPLE_S = 0.02
WARM_BYTES = 1000
NUM_SLOTS = 32
"""As many as `engine.max_running`."""
SETTINGS = {
    **keyed(*TENANT_KEYS, ACCENTED_KEY),
    "FENHE_KEYS__TOKENS_PER_MINUTE": str(10**12),
    "FENHE_KEYS__REQUESTS_PER_MINUTE": str(10**6),
    "FENHE_ENGINE__PREFIX_CACHE_BYTES": str(16 << 20),
    "FENHE_CACHE__MAX_BYTES": str(1 << 20),
    "FENHE_LOG_LEVEL": "warning",
}
"""Rates do not hide what a request does; caches are small, so that they are full before memory is compared."""


class Peak:
    """The most memory a server had while this was running."""

    def __init__(self, server: ServedProcess) -> None:
        self._server = server
        self._end = threading.Event()
        self.bytes = server.resident_bytes()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        with contextlib.suppress(OSError, RuntimeError):  # the server is gone
            while not self._end.wait(SAMPLE_S):
                self.bytes = max(self.bytes, self._server.resident_bytes())

    def close(self) -> None:
        self._end.set()
        self._thread.join()


@dataclass(slots=True, kw_only=True, frozen=True)
class Before:
    """Bytes in memory before something was tried, and those of them in bounded caches."""

    resident: int
    cached: int


@dataclass(slots=True, kw_only=True)
class Trial:
    server: ServedProcess
    target: Target
    watcher: Watcher
    control_ms: float = 0.0
    warm: Before | None = None

    def measure_control(self) -> None:
        """An idle server's longest wait, and its memory once it has worked and rested."""
        self.warm = self._before()
        self._add_control()

    def _before(self) -> Before:
        return Before(resident=self.server.resident_bytes(), cached=cached_bytes(self.target.url))

    def _add_control(self) -> None:
        """On a machine that does other things too, the longest wait of an idle server comes late."""
        self.watcher.take()
        time.sleep(CONTROL_S)
        self.control_ms = max(self.control_ms, self.watcher.take()["longest_ms"])

    def run(self, attack: Attack, *, waits: bool = True) -> Row:
        """Try it, again if the loop stood still for too long; then wait until memory is back, if `waits`."""
        before = self._before()
        peak, begun_s = Peak(self.server), time.monotonic()
        try:
            seen, gap, failures = self._try(attack)
            for _ in range(NUM_TRIES - 1):
                if not gap.may_be_noise:
                    break
                self._add_control()
                _, again, more = self._try(attack)
                least_ms = min(gap.longest_ms, again.longest_ms)
                gap, failures = Gap(longest_ms=least_ms, control_ms=self.control_ms), failures + more
        finally:
            peak.close()
        seconds = time.monotonic() - begun_s
        memory = self._memory_after(before, peak.bytes) if waits else None
        return judge(attack, seen, seconds=seconds, gap=gap, memory=memory, failures=failures)

    def _try(self, attack: Attack) -> tuple[Observation, Gap, tuple[str, ...]]:
        self.watcher.take()
        seen = attempt(attack, self.target)
        waited = self.watcher.take()
        return seen, Gap(longest_ms=waited["longest_ms"], control_ms=self.control_ms), tuple(waited["failures"])

    def _memory_after(self, before: Before, peak: int) -> Memory:
        begun_s, cached = time.monotonic(), cached_bytes(self.target.url)
        while True:
            memory = Memory(
                before=before.resident,
                peak=peak,
                after=self.server.resident_bytes(),
                waited_s=time.monotonic() - begun_s,
                cached_before=before.cached,
                cached_after=cached,
            )
            if memory.is_back or memory.waited_s > IDLE_S:
                return memory
            time.sleep(0.5)

    def run_group(self, attacks: Sequence[Attack], rest: Attack) -> Iterator[Row]:
        """Attacks that share one wait for memory, whose row is that of `rest`."""
        before, peak = self._before(), Peak(self.server)
        try:
            for attack in attacks:
                yield self.run(attack, waits=False)
        finally:
            peak.close()
        memory = self._memory_after(before, peak.bytes)
        yield judge(rest, rest.run(self.target), seconds=memory.waited_s, memory=memory)

    def end(self) -> Row:
        """What is still held, and the memory since the control."""
        seen = Observation()
        for problem in aftermath(self.target.url):
            seen.note(problem)
        assert self.warm is not None
        memory = self._memory_after(self.warm, self.server.resident_bytes())
        return judge(LEFT_BEHIND, seen, seconds=memory.waited_s, memory=memory)


def _nothing_left(seen: Observation) -> str | None:
    return ", ".join(seen.outcomes) or None


LEFT_BEHIND = Attack(
    name="in the end",
    expected="nothing held, memory as at first",
    run=lambda target: Observation(),
    rules=(_nothing_left,),
)


def attempt(attack: Attack, target: Target) -> Observation:
    """An attack that cannot even be tried is observed like one that went wrong."""
    try:
        return attack.run(target)
    except (OSError, httpx.HTTPError, RuntimeError) as error:
        seen = Observation()
        seen.note(f"failed: {type(error).__name__}: {str(error)[:100]}")
        return seen


@contextlib.contextmanager
def trial(student: Path | None, log: Path, key: str | None = None) -> Iterator[Trial]:
    """A fresh server that has warmed up and rested. With `key` a stream of that tenant is read meanwhile."""
    arguments = [] if student is None else ["--student", str(student)]
    server = ServedProcess(SETTINGS, log, arguments)
    try:
        target = Target(url=server.wait_for_url())
        wait_ready(target.url)
        warm_up(target)
        rest(server)
        watcher = Watcher(target.url, key)
        try:
            one = Trial(server=server, target=target, watcher=watcher)
            one.measure_control()
            yield one
        finally:
            watcher.close()
    finally:
        server.stop()


def warm_up(target: Target) -> None:
    """Every slot, both caches, and every endpoint's first request, so that later growth is an attack's.

    What a process keeps from its first request of a kind, such as a series of its metrics, must not be made in the
    middle of an attack: Python keeps a whole MiB for the last small object in it.
    """
    texts = [prose(30_000)[number * 900 :][:600] for number in range(NUM_SLOTS)]
    post_all(target, [(CHAT, chat(text, max_tokens=24, ignore_eos=True)) for text in texts])
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    post_all(target, [(CHAT, chat("hello", response_format=wanted, max_tokens=10)), ("/tokenize", {"prompt": "hello"})])
    for size in (WARM_BYTES, 64 * WARM_BYTES):
        post_all(target, list(bodies_of(size).values()))
    see_pages(target)


def rest(server: ServedProcess, limit_s: float = 16.0) -> None:
    """Until an idle server has given back what its start and the warm-up took, so that it is compared at rest."""
    end_s, least = time.monotonic() + limit_s, server.resident_bytes()
    while time.monotonic() < end_s:
        time.sleep(0.5)
        now = server.resident_bytes()
        if now < least * 0.97:
            return
        least = min(least, now)
