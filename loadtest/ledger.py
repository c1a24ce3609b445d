"""The record of a soak: requests by kind and outcome, and everything that went wrong."""

from collections import Counter
from dataclasses import dataclass, field

MAX_EXAMPLES = 20


@dataclass(slots=True, kw_only=True, frozen=True)
class Outcome:
    """How one request ended. `what` is its status, or what the client did; `problem` says what went wrong."""

    what: str
    problem: str | None = None
    cache: str | None = None


@dataclass(slots=True, kw_only=True)
class Ledger:
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    cache: Counter[str] = field(default_factory=Counter)
    num_problems: int = 0
    examples: list[str] = field(default_factory=list)

    def note(self, kind: str, outcome: Outcome) -> None:
        self.outcomes[kind, outcome.what] += 1
        if outcome.cache is not None:
            self.cache[outcome.cache] += 1
        if outcome.problem is not None:
            self.add_problem(f"{kind}: {outcome.problem}")

    def add_problem(self, problem: str) -> None:
        self.num_problems += 1
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(problem)

    @property
    def num_requests(self) -> int:
        return self.outcomes.total()

    def table(self) -> list[tuple[str, int, str]]:
        """Per kind: its name, how many, and its outcomes, most frequent first."""
        kinds: dict[str, Counter[str]] = {}
        for (kind, what), count in self.outcomes.items():
            kinds.setdefault(kind, Counter())[what] += count
        return [
            (kind, counts.total(), ", ".join(f"{what}: {count}" for what, count in counts.most_common()))
            for kind, counts in sorted(kinds.items())
        ]
