"""What every handler is given: settings, student, engine, bridge and metrics of one server; no globals."""

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TypeVar

from engines.contract import Engine
from models.manifest import MANIFEST_NAME
from server.bridge import Bridge
from server.config import ServerConfig
from server.metrics import Metrics
from server.student import Student

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
    config: ServerConfig
    student: Student
    engine: Engine
    bridge: Bridge
    metrics: Metrics
    drain: Drain = field(default_factory=Drain)
    version: str = field(default_factory=fenhe_version)

    @property
    def max_context_tokens(self) -> int:
        """The longest prompt and answer together: the student's, the configured one, or what KV has room for."""
        bounds = (
            self.student.manifest.architecture.max_context_tokens,
            self.config.engine.max_context_tokens,
            self.engine.status().kv_capacity_tokens,
        )
        return min(bound for bound in bounds if bound is not None)

    @property
    def fingerprint(self) -> str:
        """`system_fingerprint`: changes when the version, the student or its precision does."""
        manifest = self.student.manifest
        seed = f"{self.version} {manifest.name} {manifest.source_sha256} {self.engine.status().variant}"
        return f"fp_{hashlib.sha256(seed.encode()).hexdigest()[:10]}"

    @property
    def student_created(self) -> int:
        """When the student was built, in Unix seconds."""
        file = self.student.folder / MANIFEST_NAME
        return int(file.stat().st_mtime) if file.exists() else 0


def make_context(config: ServerConfig, student: Student, engine: Engine) -> Context:
    metrics = Metrics(engine, config.engine)
    return Context(config=config, student=student, engine=engine, bridge=Bridge(engine, metrics), metrics=metrics)


async def run_beside(num_chars: int, work: Callable[[], T]) -> T:
    """Run `work` in a thread when it has long text to go through, so that the loop goes on streaming."""
    return await asyncio.to_thread(work) if num_chars > LONG_TEXT_CHARS else work()
