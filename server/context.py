"""What every handler is given: settings, students, router and metrics of one server; no globals."""

import asyncio
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from engines.remote.student import RemoteStudent
from models.errors import ConfigError
from router.admission.pace import Pace
from router.cache.result_cache import ResultCache, make_result_cache
from router.pool import Pool
from router.router import Classifier, Router
from server.access.keys import Key, Keyring, load_keys
from server.long_work import LongWork
from server.quality.online_quality import OnlineQuality
from server.quality.pins import pin_problems
from server.quality.scorer import Scorer
from server.settings.config import Draft, ServerConfig
from server.students.admission_gate import StudentAdmission, bounds_of
from server.students.event_bridge import Bridge
from server.students.grammars import Grammars
from server.students.open_student import Opened, Opener, make_opener
from server.students.student import ServedStudent, Student
from server.telemetry.admission import AdmissionCollector, Admissions
from server.telemetry.grammars import GrammarCollector
from server.telemetry.metrics import Metrics
from server.telemetry.online_quality import FigureSeries, OnlineQualityCollector, Snapshot
from server.telemetry.tracing import Tracing, make_tracing
from server.telemetry.upstreams import HasUpstreams, UpstreamCollector, Upstreams
from server.version import fenhe_version


@dataclass(slots=True, kw_only=True)
class Drain:
    """Whether the server is stopping, and the keys of requests it still has to answer. Owned by the loop."""

    is_draining: bool = False
    open_keys: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Live:
    """The settings in force. A reload replaces them as a whole: a reader sees the old ones or the new ones. Reloads
    take turns, so that the last one asked for is the one that stays in force."""

    config: ServerConfig
    reloading: asyncio.Lock = field(default_factory=asyncio.Lock)
    is_reload_good: bool = True


@dataclass(slots=True, kw_only=True, frozen=True)
class Context:
    """`leaving` are students that were removed and whose engines are not stopped yet. `draft_config` reads the settings
    again from where they came; None where there is nothing to read. `refused_connections` counts, by code, connections
    that were refused before there was a request. `instance` tells this process from others. Owned by the loop."""

    live: Live
    pool: Pool[ServedStudent]
    router: Router
    metrics: Metrics
    cache: ResultCache
    opener: Opener
    quality: OnlineQuality
    scorer: Scorer
    drain: Drain = field(default_factory=Drain)
    keyring: Keyring = field(default_factory=Keyring)
    draft_config: Draft | None = None
    leaving: dict[str, ServedStudent] = field(default_factory=dict)
    refused_connections: Counter[str] = field(default_factory=Counter)
    long_work: LongWork = field(default_factory=LongWork)
    tracing: Tracing | None = None
    version: str = field(default_factory=fenhe_version)
    instance: str = field(default_factory=lambda: secrets.token_hex(6))

    @property
    def config(self) -> ServerConfig:
        return self.live.config

    @property
    def students(self) -> tuple[ServedStudent, ...]:
        return self.pool.members

    @property
    def num_streams(self) -> int:
        """Generation requests that are being answered, or wait for their turn."""
        students = (*self.students, *self.leaving.values())
        return sum(student.bridge.num_streams + student.admission.turns.num_waiting for student in students)

    def admissions(self) -> Admissions:
        """Every student's admission and drain rate."""
        return [(one.name, one.admission.turns, one.admission.pace.drain.tokens_per_s) for one in self.students]

    def upstreams(self) -> Upstreams:
        """Those of remote students."""
        engines = [(one.name, one.engine) for one in self.students if isinstance(one.engine, HasUpstreams)]
        return [(name, engine.upstreams, engine.num_retries) for name, engine in engines]

    def quality_snapshot(self) -> Snapshot | None:
        """Online quality for metrics; None where it is off."""
        quality = self.quality
        if quality.config.mode == "off":
            return None
        statuses = {student.name: student.engine.status() for student in self.students}
        return Snapshot(
            figures=[
                FigureSeries(use=row.use, figure=row.figure, floor=row.floor, is_open=row.standing.is_open)
                for row in quality.rows()
            ],
            scored=dict(quality.num_scored),
            left_out=dict(quality.left_out),
            changes=dict(quality.num_changes),
            seconds={
                name: (status.busy_s, status.background_s) for name, status in statuses.items() if status.can_score
            },
            held={name: why is not None for name, why in self.scorer.held_by_student().items()},
            num_waiting=self.scorer.num_waiting,
        )

    def has_sequences(self, key: str) -> bool:
        """Whether sequences called `{key}-{index}` are still in an engine, perhaps being aborted."""
        return any(student.bridge.has_sequences(key) for student in self.students)

    def serve(self, opened: Opened) -> ServedStudent:
        """Add a student to the pool; its engine is started by its bridge. Raises: ConfigError for its name."""
        metrics = self.metrics.for_student(opened.name)
        remote = opened.student.config if isinstance(opened.student, RemoteStudent) else None
        pace, bounds = Pace(), bounds_of(self.config, remote)
        bridge = Bridge(opened.engine, metrics, pace)
        student = ServedStudent(
            name=opened.name,
            student=opened.student,
            engine=opened.engine,
            max_running=bounds.max_running,
            tasks=opened.tasks,
            bridge=bridge,
            admission=StudentAdmission(
                bridge,
                opened.engine,
                bounds,
                pace,
                caches_prefixes=self.config.engine.prefix_cache_bytes > 0,
            ),
            grammars=grammars_of(opened.student),
            metrics=metrics,
            version=self.version,
            max_configured_tokens=self.config.engine.max_context_tokens if remote is None else None,
        )
        self.pool.add(student)
        return student

    def start_engines(self) -> None:
        """Let the engines load; their events come once there is a loop."""
        for student in self.students:
            student.bridge.start_engine()

    def attach(self) -> None:
        """Bring every engine's events to the running loop, and start the engines that have not been started."""
        for student in self.students:
            student.bridge.attach()

    async def stop_engines(self) -> None:
        """Stop every engine, which ends the sequences that are left in it, and what compiles grammars."""
        students = (*self.students, *self.leaving.values())
        for student in students:
            student.grammars.close()
        await asyncio.gather(*(asyncio.to_thread(student.engine.stop, 0.0) for student in students))


def make_context(
    config: ServerConfig,
    students: Sequence[Opened],
    *,
    classifier: Classifier | None = None,
    opener: Opener | None = None,
    keys: Sequence[Key] | None = None,
    draft_config: Draft | None = None,
    tracing: Tracing | None = None,
) -> Context:
    """`classifier` None: requests are not classified. `opener` is for students added later. `keys` None: those of
    the settings. `tracing` None: what the settings say.

    Raises: ConfigError for names that collide, keys that cannot be read, packages that are missing, or pins for paths
    that no student has.
    """
    pool: Pool[ServedStudent] = Pool()
    leaving: dict[str, ServedStudent] = {}
    router = Router(classifier, config.router)
    cache = make_result_cache(config.cache)
    live, drain = Live(config), Drain()
    quality = OnlineQuality(lambda: live.config.online_quality, lambda: pool.members, router.adapt)
    metrics = Metrics(
        config.engine,
        statuses=lambda: [(one.name, one.status()) for one in (*pool.members, *leaving.values())],
        num_classifier_faults=lambda: router.num_faults,
        cache=cache,
    )
    context = Context(
        live=live,
        pool=pool,
        router=router,
        metrics=metrics,
        cache=cache,
        opener=opener or make_opener(config.engine, verify=config.verify_students),
        quality=quality,
        scorer=Scorer(quality, lambda: pool.members, lambda: drain.is_draining),
        drain=drain,
        keyring=Keyring(load_keys(config.keys) if keys is None else keys),
        draft_config=draft_config,
        leaving=leaving,
        tracing=make_tracing(config.tracing, fenhe_version()) if tracing is None else tracing,
    )
    metrics.register(
        AdmissionCollector(
            context.admissions,
            context.keyring.refusals,
            context.refused_connections,
            is_reload_good=lambda: context.live.is_reload_good,
        )
    )
    metrics.register(GrammarCollector(lambda: [(one.name, one.grammars.counts) for one in pool.members]))
    metrics.register(UpstreamCollector(context.upstreams))
    metrics.register(OnlineQualityCollector(context.quality_snapshot))
    for opened in students:
        context.serve(opened)
    problems = list(pin_problems(config.online_quality, {one.name: one.manifest for one in pool.members}))
    if problems:
        raise ConfigError(*problems)
    quality.apply_settings()
    return context


def grammars_of(student: Student) -> Grammars:
    num_logits = student.manifest.architecture.vocab_size
    return Grammars(student.tokenizer, num_logits)
