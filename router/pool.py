"""The students of one server, each with its own engine, and their state for the policy.

It knows no HTTP and decides nothing: `router.policy` picks the student of a request.
"""

import threading
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from engines.contract import Engine, EngineStatus
from models.errors import BadRequest, ConfigError, NotFound
from models.student.manifest import NAME_RULE, Manifest, is_plain_name
from router.decision import Health, StudentState
from router.tasks import Task

AUTO = "auto"
"""The model id that means any student, so no student may have this name."""


class Student(Protocol):
    """What the pool needs of a student."""

    @property
    def manifest(self) -> Manifest: ...


@dataclass(slots=True, kw_only=True, eq=False)
class Member:
    """A student in the pool. `tasks` empty: it takes every task. Only `is_draining` ever changes."""

    name: str
    student: Student
    engine: Engine
    max_running: int
    tasks: frozenset[Task] = frozenset()
    is_draining: bool = field(default=False, init=False)

    def state(self) -> StudentState:
        status = self.engine.status()
        return StudentState(
            name=self.name,
            manifest=self.student.manifest,
            variant=status.variant,
            head=status.head,
            health=self._health(status),
            tasks=self.tasks,
            num_running=status.num_running,
            num_waiting=status.num_waiting,
            max_running=self.max_running,
            error=status.error,
        )

    def _health(self, status: EngineStatus) -> Health:
        if not status.is_healthy:
            return Health.UNHEALTHY
        if self.is_draining:
            return Health.DRAINING
        return Health.READY if status.is_ready else Health.LOADING

    @property
    def is_busy(self) -> bool:
        """Whether its engine has sequences that are not finished."""
        status = self.engine.status()
        return status.num_running + status.num_waiting > 0


M = TypeVar("M", bound=Member)


class Pool(Generic[M]):
    """Members in the order they were added. Readers on any thread see all of a change or none of it."""

    def __init__(self) -> None:
        self._members: tuple[M, ...] = ()
        self._lock = threading.Lock()

    @property
    def members(self) -> tuple[M, ...]:
        return self._members

    def states(self) -> tuple[StudentState, ...]:
        """A snapshot for one decision."""
        return tuple(member.state() for member in self._members)

    def find(self, name: str) -> M:
        """Raises: NotFound."""
        for member in self._members:
            if member.name == name:
                return member
        listed = ", ".join(f"`{member.name}`" for member in self._members) or "none"
        raise NotFound(f"there is no student `{name[:200]}`; this server has {listed}")

    def add(self, member: M) -> None:
        """Raises: ConfigError for a name that is taken or has another meaning."""
        with self._lock:
            problem = name_problem(member.name, [other.name for other in self._members])
            if problem is not None:
                raise ConfigError(problem)
            self._members = (*self._members, member)

    def drain(self, name: str) -> M:
        """Stop giving a student new requests; its running ones may finish. Raises: NotFound."""
        member = self.find(name)
        member.is_draining = True
        return member

    def resume(self, name: str) -> M:
        """Give a drained student new requests again. Raises: NotFound."""
        with self._lock:
            member = self.find(name)
            member.is_draining = False
        return member

    def take_out(self, name: str) -> M:
        """Remove a student, whose engine the caller then stops.

        Raises: NotFound; BadRequest while sequences run, unless it was drained first.
        """
        with self._lock:
            member = self.find(name)
            if member.is_busy and not member.is_draining:
                raise BadRequest(f"student `{name}` has running sequences; drain it first, then remove it")
            member.is_draining = True
            self._members = tuple(other for other in self._members if other is not member)
        return member


def name_problem(name: str, taken: list[str]) -> str | None:
    """Why a student cannot have this name, given those that are `taken`: a sentence that says what to do instead."""
    if name == AUTO:
        return f"a student cannot be called {name!r}, which means any student; give it another `name`"
    if not is_plain_name(name):
        return f"a student cannot be called {name[:200]!r}; give it another `name` of {NAME_RULE}"
    if name in taken:
        return f"two students are called {name!r}; give one of them another `name`"
    return None
