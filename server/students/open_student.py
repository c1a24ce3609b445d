"""From the settings of a student to one that can be served: its folder found, its engine built, nothing started."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engines.config import EngineConfig
from engines.contract import Engine
from models.errors import ConfigError, ServingError
from router.pool import name_problem
from router.router import Classifier, UnreadableClassifier
from router.tasks import Task
from server.settings.config import RouterConfig, StudentConfig
from server.students.student import Student

if TYPE_CHECKING:
    from models.building.cached_student import StudentCache
    from models.student.folder import Student as StudentFolder

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


def make_opener(
    engine: EngineConfig,
    open_default: "Callable[[], StudentFolder] | None" = None,
    *,
    verify: bool = True,
    environ: Mapping[str, str] | None = None,
    cache: "StudentCache | None" = None,
) -> Opener:
    """An opener of students; `open_default` gives the one for settings that name no folder. `verify`: files are
    compared with their checksums before they are loaded. `environ` has the keys of upstreams. Models that are no
    student folder are built into `cache`; without one they are refused."""

    def open_student(config: StudentConfig) -> Opened:
        if config.engine == "remote":
            return open_remote(config, environ or {})
        from models.student.folder import Student

        name = config.name
        if config.folder is not None:
            name, folder = _student_folder(config, config.folder, engine, cache)
            student = Student.open(folder, verify=verify)
        elif open_default is not None:
            student = open_default()
        else:
            raise ConfigError("a student needs its `folder`")
        if student.tokenizer.chat_template is None:
            logger.warning(
                "no chat template student=%s: chats are refused, /v1/completions takes prompts", student.folder
            )
        return Opened(
            name=name or student.manifest.name,
            student=student,
            engine=_build(student, engine, config),
            tasks=frozenset(config.tasks),
        )

    return open_student


def _student_folder(
    config: StudentConfig, folder: Path, engine: EngineConfig, cache: "StudentCache | None"
) -> tuple[str | None, Path]:
    """The name that the settings give, or a model's file that had to be built, and the folder to open."""
    from models.building.cached_student import is_student, model_id

    if cache is None or is_student(folder):
        return config.name, folder
    from server.students.built_student import find_built

    return config.name or model_id(folder), find_built(cache, folder, engine, config.engine)


def _build(student: "StudentFolder", engine: EngineConfig, config: StudentConfig) -> Engine:
    """Raises: ConfigError for settings that the student or this machine cannot meet."""
    if config.engine == "vllm":
        from engines.vllm.build import build_vllm_engine

        return build_vllm_engine(student, engine, config.vllm)
    from engines.build import build_engine

    return build_engine(student, engine)


def open_remote(config: StudentConfig, environ: Mapping[str, str]) -> Opened:
    """A remote student, whether or not its upstreams are there. Raises: ConfigError for a key that is not set."""
    from engines.remote.engine import RemoteEngine
    from engines.remote.student import RemoteStudent

    remote, name = config.remote, config.name
    assert name is not None, "the settings have been checked"
    keys = [None] * len(remote.urls) if not remote.key_env else [_key(name, one, environ) for one in remote.key_env]
    student = RemoteStudent(name, remote)
    engine = RemoteEngine(student, remote, keys if len(keys) == len(remote.urls) else keys * len(remote.urls))
    return Opened(name=name, student=student, engine=engine, tasks=frozenset(config.tasks))


def _key(student: str, variable: str, environ: Mapping[str, str]) -> str:
    key = environ.get(variable, "").strip()
    if not key:
        raise ConfigError(f"student `{student}`: the environment variable {variable} (key_env) holds no key")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(f"student `{student}`: what the variable {variable} holds cannot be sent as a key")
    return key


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
