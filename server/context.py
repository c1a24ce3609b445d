"""What every handler is given: settings, students, router and metrics of one server; no globals."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TypeVar

from router.pool import Pool
from router.router import Classifier, Router
from server.bridge import Bridge
from server.config import ServerConfig
from server.metrics import Metrics
from server.opening import Opened, Opener, make_opener
from server.student import ServedStudent

LONG_TEXT_CHARS = 4096
"""Longer texts are tokenised in a thread: this many characters take about a millisecond."""

T = TypeVar("T")


def fenhe_version() -> str:
    try:
        return version("fenhe")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "unknown"


@dataclass(slots=True, kw_only=True)
class Drain:
    """Whether the server is leaving, and the requests it still owes an answer. Owned by the loop."""

    is_draining: bool = False
    open_keys: set[str] = field(default_factory=set)


@dataclass(slots=True, kw_only=True, frozen=True)
class Context:
    """`leaving` are students that were removed and whose engines are not stopped yet. Owned by the loop."""

    config: ServerConfig
    pool: Pool[ServedStudent]
    router: Router
    metrics: Metrics
    opener: Opener
    leaving: dict[str, ServedStudent] = field(default_factory=dict)
    drain: Drain = field(default_factory=Drain)
    version: str = field(default_factory=fenhe_version)

    @property
    def students(self) -> tuple[ServedStudent, ...]:
        return self.pool.members

    @property
    def num_streams(self) -> int:
        """Generation requests that are being answered."""
        return sum(student.bridge.num_streams for student in (*self.students, *self.leaving.values()))

    def has_sequences(self, key: str) -> bool:
        """Whether sequences called `{key}-{index}` are still in an engine, perhaps being aborted."""
        return any(student.bridge.has_sequences(key) for student in self.students)

    def serve(self, opened: Opened) -> ServedStudent:
        """Add a student to the pool; its engine is started by its bridge. Raises: ConfigError for its name."""
        metrics = self.metrics.for_student(opened.name)
        student = ServedStudent(
            name=opened.name,
            student=opened.student,
            engine=opened.engine,
            max_running=self.config.engine.max_running,
            tasks=opened.tasks,
            bridge=Bridge(opened.engine, metrics),
            metrics=metrics,
            version=self.version,
            max_configured_tokens=self.config.engine.max_context_tokens,
        )
        self.pool.add(student)
        return student

    def start_engines(self) -> None:
        """Let the engines load; their events come once there is a loop."""
        for student in self.students:
            student.bridge.start_engine()

    def attach(self) -> None:
        """Bring every engine's events to the running loop, and start those that nobody has."""
        for student in self.students:
            student.bridge.attach()

    async def stop_engines(self) -> None:
        """End every engine, which ends what is left in it."""
        students = (*self.students, *self.leaving.values())
        await asyncio.gather(*(asyncio.to_thread(student.engine.stop, 0.0) for student in students))


def make_context(
    config: ServerConfig,
    students: Sequence[Opened],
    *,
    classifier: Classifier | None = None,
    opener: Opener | None = None,
) -> Context:
    """`classifier` None: requests are not classified. `opener` is for students that come later.

    Raises: ConfigError for names that collide.
    """
    pool: Pool[ServedStudent] = Pool()
    leaving: dict[str, ServedStudent] = {}
    router = Router(classifier, config.router)
    metrics = Metrics(
        config.engine,
        statuses=lambda: [(one.name, one.engine.status()) for one in (*pool.members, *leaving.values())],
        num_classifier_faults=lambda: router.num_faults,
    )
    context = Context(
        config=config,
        pool=pool,
        router=router,
        metrics=metrics,
        opener=opener or make_opener(config.engine),
        leaving=leaving,
    )
    for opened in students:
        context.serve(opened)
    return context


async def run_beside(num_chars: int, work: Callable[[], T], *, limit_chars: int = LONG_TEXT_CHARS) -> T:
    """Run `work` in a thread when it has long text to go through, so that the loop goes on streaming."""
    return await asyncio.to_thread(work) if num_chars > limit_chars else work()
