"""What was measured beside an attack, and whether it passes."""

from dataclasses import dataclass

from loadtest.chaos.attack import Attack, Observation

MAX_GAP_MS, MAX_GAP_RATIO = 50.0, 5.0
NOISE_MS = 500.0
"""Whatever else a machine does, it does not keep a process waiting for longer."""
MAX_GROWTH = 0.10
MIB = 1 << 20


@dataclass(slots=True, kw_only=True, frozen=True)
class Memory:
    """Resident bytes of the server; `after` is 30 s later at most, `waited_s` when it was back. What its bounded caches
    hold, `cached_before` and `cached_after` of these, is theirs to keep and is left out of the judgement."""

    before: int
    peak: int
    after: int
    waited_s: float = 0.0
    cached_before: int = 0
    cached_after: int = 0

    @property
    def growth(self) -> float:
        """Of all but the caches, as a share of what that was."""
        return (self.after - self.cached_after) / (self.before - self.cached_before) - 1

    @property
    def is_back(self) -> bool:
        return self.growth <= MAX_GROWTH

    def problems(self, max_growth_mib: int | None) -> list[str]:
        found = []
        if not self.is_back:
            found.append(f"memory stays: {self.growth:+.0%} after {self.waited_s:.0f} s")
        if max_growth_mib is not None and self.peak - self.before > max_growth_mib * MIB:
            found.append(f"took {(self.peak - self.before) // MIB} MiB, more than {max_growth_mib}")
        return found


@dataclass(slots=True, kw_only=True, frozen=True)
class Gap:
    """The longest wait of a probe, beside an attack and on the idle server before."""

    longest_ms: float
    control_ms: float

    @property
    def is_too_long(self) -> bool:
        return self.longest_ms > MAX_GAP_MS and self.longest_ms > MAX_GAP_RATIO * self.control_ms

    @property
    def may_be_noise(self) -> bool:
        return self.is_too_long and self.longest_ms < NOISE_MS

    def problems(self) -> list[str]:
        if not self.is_too_long:
            return []
        ratio = self.longest_ms / self.control_ms
        return [f"the loop stood still for {self.longest_ms:.0f} ms, {ratio:.0f} times the idle control"]


@dataclass(slots=True, kw_only=True, frozen=True)
class Row:
    """One line of the table. `failures` are probes that were not answered."""

    name: str
    expected: str
    seen: str
    seconds: float
    gap: Gap | None
    memory: Memory | None
    problems: tuple[str, ...]

    @property
    def verdict(self) -> str:
        if self.problems:
            return "FAIL"
        return "skip" if self.seen.startswith("skipped") else "ok"


def judge(
    attack: Attack,
    seen: Observation,
    *,
    seconds: float,
    gap: Gap | None = None,
    memory: Memory | None = None,
    failures: tuple[str, ...] = (),
) -> Row:
    problems = attack.problems(seen)
    problems += [f"another client was not answered: {failure}" for failure in failures[:1]]
    problems += [] if gap is None else gap.problems()
    problems += [] if memory is None else memory.problems(attack.max_growth_mib)
    return Row(
        name=attack.name,
        expected=attack.expected,
        seen=seen.text(),
        seconds=seconds,
        gap=gap,
        memory=memory,
        problems=tuple(problems),
    )
