"""From the settings of a student to one that can be served: its folder read, its engine built, nothing started."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from engines.config import EngineConfig
from engines.contract import Engine
from models.errors import ConfigError, ServingError
from router.pool import name_problem
from router.router import Classifier, UnreadableClassifier
from router.tasks import Task
from server.settings.config import RouterConfig, StudentConfig
from server.students.student import Student

logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True, frozen=True)
class Opened:
    """A student behind an engine that has yet to be started."""

    name: str
    student: Student
    engine: Engine
    tasks: frozenset[Task] = frozenset()


Opener = Callable[[StudentConfig], Opened]
"""Slow: reads files and may measure. Raises: ConfigError, WeightsError."""


def make_opener(engine: EngineConfig, find_default: Callable[[], Path] | None = None, *, verify: bool = True) -> Opener:
    """An opener of student folders; `find_default` gives the folder of a student that names none. `verify`: files are
    compared with their checksums before they are loaded."""

    def open_student(config: StudentConfig) -> Opened:
        from engines.build import build_engine
        from models.student.folder import Student

        folder = config.folder or (find_default() if find_default is not None else None)
        if folder is None:
            raise ConfigError("a student needs its `folder`")
        student = Student.open(folder, verify=verify)
        return Opened(
            name=config.name or student.manifest.name,
            student=student,
            engine=build_engine(student, engine),
            tasks=frozenset(config.tasks),
        )

    return open_student


def load_classifier(config: RouterConfig) -> Classifier | None:
    """The task classifier, or None when it is switched off. When the one that ships cannot be read, one that fails on
    every request, so that each takes the full path and is counted.

    Raises: ConfigError for a file that was named.
    """
    if not config.enabled:
        logger.info("router off")
        return None
    from router.classifier.classify import SHIPPED, TaskClassifier

    try:
        classifier = TaskClassifier.load(config.classifier)
    except ConfigError as error:
        if config.classifier is not None:
            raise
        logger.error("classifier unavailable error=%s: every request takes the full path", error)
        return UnreadableClassifier(error)
    logger.info(
        "classifier loaded file=%s trained_on=%s", config.classifier or SHIPPED, classifier.settings.trained_on[:12]
    )
    return classifier


def open_all(configs: Sequence[StudentConfig], opener: Opener) -> list[Opened]:
    """Raises: ConfigError that lists what is wrong with every one of them."""
    problems: list[str] = []
    opened: list[Opened] = []
    for config in configs:
        try:
            student = opener(config)
        except ServingError as error:
            problems.append(error.message)
            continue
        problem = name_problem(student.name, [other.name for other in opened])
        problems += [] if problem is None else [problem]
        opened.append(student)
    if problems:
        raise ConfigError("; ".join(problems))
    return opened
