"""A request that asks for admission (`Ticket`), how much several of them may use (`Load`), and the bounds of that."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from models.errors import ServingError
from router.admission.least_time import Need
from router.decision import Priority


@dataclass(slots=True, kw_only=True, frozen=True)
class Bounds:
    """How much may run, and how much may queue behind it."""

    max_running: int
    max_running_tokens: int
    max_queued: int
    max_queued_tokens: int


class TicketStatus(Enum):
    NEW = "new"
    QUEUED = "queued"
    RUNNING = "running"
    OVER = "over"


@dataclass(slots=True, kw_only=True, eq=False)
class Ticket:
    """One request that asks for admission, with all its sequences: the tokens of their prompts and longest answers.
    `needs` is the least that each of them takes.

    `decide` is called at most once: with None when the request may start, with an error when it is refused.
    """

    tenant: str | None = None
    path: str = ""
    needs: frozenset[Need] = frozenset()
    priority: Priority = Priority.NORMAL
    num_sequences: int = 1
    num_prompt_tokens: int
    num_answer_tokens: int
    deadline_s: float
    decide: Callable[[ServingError | None], None]
    status: TicketStatus = field(default=TicketStatus.NEW, init=False)
    order: int = field(default=0, init=False)

    @property
    def cost_tokens(self) -> int:
        """The most it can use."""
        return self.num_prompt_tokens + self.num_answer_tokens

    @property
    def answer_tokens(self) -> float:
        """The longest answer of one of its sequences."""
        return self.num_answer_tokens / self.num_sequences


@dataclass(slots=True)
class Load:
    """Sequences, and the most tokens they can use."""

    num_sequences: int = 0
    num_tokens: int = 0

    def add(self, ticket: Ticket) -> None:
        self.num_sequences += ticket.num_sequences
        self.num_tokens += ticket.cost_tokens

    def take(self, ticket: Ticket) -> None:
        self.num_sequences -= ticket.num_sequences
        self.num_tokens -= ticket.cost_tokens
