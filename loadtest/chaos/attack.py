"""What an attack is, what it observes, and the rules that an observation is judged by."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from loadtest.served import ADMIN_KEY, TENANT_KEYS


@dataclass(slots=True, kw_only=True, frozen=True)
class Target:
    """The server under attack. The tenant `key` attacks; `other_key` is another's, who must not notice."""

    url: str
    key: str = TENANT_KEYS[0]
    other_key: str = TENANT_KEYS[1]
    admin_key: str = ADMIN_KEY

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        assert parts.port is not None
        return parts.hostname, parts.port


@dataclass(slots=True, kw_only=True)
class Observation:
    """How requests ended and how often, and what was measured. `skipped`: why this machine cannot try it."""

    outcomes: Counter[str] = field(default_factory=Counter)
    figures: dict[str, float] = field(default_factory=dict)
    skipped: str | None = None

    def note(self, outcome: str | int) -> None:
        self.outcomes[str(outcome)] += 1

    def text(self) -> str:
        if self.skipped is not None:
            return f"skipped: {self.skipped}"
        ends = [f"{outcome}: {count}" if count > 1 else outcome for outcome, count in sorted(self.outcomes.items())]
        return ", ".join([*ends, *(f"{name} {value:.3g}" for name, value in self.figures.items())])


Rule = Callable[[Observation], str | None]
"""What is wrong with an observation; None if nothing is."""


@dataclass(slots=True, kw_only=True, frozen=True)
class Attack:
    """`expected` says in words what `rules` check. `max_growth_mib` bounds the memory that it may make the server take;
    None: it may take what its requests need, as long as that comes back."""

    name: str
    expected: str
    run: Callable[[Target], Observation]
    rules: Sequence[Rule]
    max_growth_mib: int | None = None

    def problems(self, seen: Observation) -> list[str]:
        if seen.skipped is not None:
            return []
        return [problem for problem in (rule(seen) for rule in self.rules) if problem is not None]


def only(*allowed: str) -> Rule:
    """No outcome but these, and at least one."""

    def check(seen: Observation) -> str | None:
        others = [outcome for outcome in seen.outcomes if outcome not in allowed]
        if others:
            return f"unexpected: {', '.join(sorted(others))}"
        return None if seen.outcomes else "nothing was answered"

    return check


def each(*wanted: str) -> Rule:
    """Every one of these outcomes."""

    def check(seen: Observation) -> str | None:
        missing = [outcome for outcome in wanted if not seen.outcomes[outcome]]
        return f"missing: {', '.join(missing)}" if missing else None

    return check


def at_most(name: str, bound: float) -> Rule:
    return _figure(name, lambda value: f"{name} is {value:.3g}, more than {bound:g}" if value > bound else None)


def at_least(name: str, bound: float) -> Rule:
    return _figure(name, lambda value: f"{name} is {value:.3g}, less than {bound:g}" if value < bound else None)


def _figure(name: str, fault_of: Callable[[float], str | None]) -> Rule:
    """What is wrong with a figure that must have been measured."""

    def check(seen: Observation) -> str | None:
        value = seen.figures.get(name)
        return f"{name} was not measured" if value is None else fault_of(value)

    return check
