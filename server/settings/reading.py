"""Reads settings from the file, the environment and the flags. Nothing else reads `FENHE_*` variables.

A setting is named by its place in the tree: `limits.max_body_bytes` is `[limits] max_body_bytes = ...` in a file,
`FENHE_LIMITS__MAX_BODY_BYTES` in the environment and `--max-body-bytes` on the command line. Flags win over the
environment, the environment over the file, the file over defaults.
"""

import dataclasses
import os.path
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import msgspec

from engines.config import EngineConfig
from engines.remote.config import RemoteConfig
from models.errors import ConfigError, Problem
from models.sources.fetch import cache_folder
from router.admission.admission import AdmissionConfig
from router.cache.config import CacheConfig
from router.policy import PolicyConfig
from router.pool import name_problem
from router.quality.config import OnlineQualityConfig
from server.settings.config import ServerConfig, StudentConfig
from server.settings.fields import ENV_PREFIX, bare, flag_of, is_section, setting_names, variable_of
from server.settings.suggestions import find_setting, wrong_value

NOT_SETTINGS = frozenset({"FENHE_API_KEY", "FENHE_CACHE", "FENHE_CONFIG"})
"""Variables with our prefix that are no settings: a client's key, the folder of models, the settings file."""

_SERVICE_LINK = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT(_\w+)?$|_PORT_[0-9]+_(TCP|UDP|SCTP)(_\w+)?$")

CHECKED = (
    EngineConfig,
    PolicyConfig,
    OnlineQualityConfig,
    AdmissionConfig,
    CacheConfig,
    RemoteConfig,
    StudentConfig,
)
"""Sections whose values are also checked against one another."""

_SECRET = re.compile(r"sha256|url|password|secret", re.IGNORECASE)
"""Settings whose value no error shows: somebody may have written the key itself where its hash belongs."""


@dataclass(slots=True, frozen=True)
class Given:
    """A value of a setting, and where it was written. Text from the environment may stand for a number."""

    name: str
    value: Any
    origin: str
    is_text: bool = False


Settings = dict[str, Given]
"""By dotted name: `limits.max_body_bytes`."""


def load_config(flags: Mapping[str, str | None], environ: Mapping[str, str], file: Path | None = None) -> ServerConfig:
    """Compose the settings; `flags` has texts by dotted name, None where a flag was not given.

    Raises: ConfigError that lists every mistake.
    """
    config, problems = draft_config(flags, environ, file)
    if problems:
        raise ConfigError(*problems)
    return config


def draft_config(
    flags: Mapping[str, str | None], environ: Mapping[str, str], file: Path | None = None
) -> tuple[ServerConfig, list[Problem]]:
    """The settings, and every mistake in them. A wrong setting has its default."""
    problems: list[Problem] = []
    named = file if file is not None else environ.get("FENHE_CONFIG")
    settings = _read_file(Path(named), problems) if named else {}
    settings |= _read_environ(environ)
    settings |= {
        name: Given(name, text, flag_of(name), is_text=True) for name, text in flags.items() if text is not None
    }
    config = _build(ServerConfig, settings, "", problems)
    problems[:0] = _unknown(settings, setting_names(with_tables=True))
    assert isinstance(config, ServerConfig)
    return _with_cache_folders(config, environ), problems


def _unknown(settings: Settings, known: list[str]) -> list[Problem]:
    return [_unknown_one(given, find_setting(given.name, known)) for given in settings.values()]


def _unknown_one(given: Given, near: str | None) -> Problem:
    """Suggests the name that was probably meant, in the form of the wrong one."""
    said = f"{given.origin}: no such setting"
    if near is None:
        return Problem(setting=given.name, said=said)
    hint = f"; did you mean {variable_of(near) if given.is_text else near}?"
    return Problem(setting=given.name, others=(near,), said=said + hint)


def _with_cache_folders(config: ServerConfig, environ: Mapping[str, str]) -> ServerConfig:
    """Compiled operators, and students that the console can add, are in the cache unless other folders are set."""
    cache = cache_folder(environ)
    if config.engine.native_folder is None:
        config = dataclasses.replace(config, engine=dataclasses.replace(config.engine, native_folder=cache / "native"))
    if not config.console.folders:
        console = dataclasses.replace(config.console, folders=(cache / "students",))
        config = dataclasses.replace(config, console=console)
    return config


def _read_file(file: Path, problems: list[Problem]) -> Settings:
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        problems.append(Problem(said=f"{file}: cannot be read: {error}"))
        return {}
    return _flatten(table, "", str(file))


def _flatten(table: Mapping[str, Any], prefix: str, origin: str) -> Settings:
    settings: Settings = {}
    for key, value in table.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            settings |= _flatten(value, f"{name}.", origin)
        else:
            settings[name] = Given(name, value, f"{origin}: {name}")
    return settings


def _read_environ(environ: Mapping[str, str]) -> Settings:
    settings: Settings = {}
    for variable, value in environ.items():
        if variable.startswith(ENV_PREFIX) and variable not in NOT_SETTINGS and not _is_service_link(variable, value):
            name = variable.removeprefix(ENV_PREFIX).lower().replace("__", ".")
            settings[name] = Given(name, value, variable, is_text=True)
    return settings


def _is_service_link(variable: str, value: str) -> bool:
    """Kubernetes sets FENHE_PORT=tcp://... and the like in every pod beside a Service named fenhe."""
    is_port = variable.endswith("_PORT") and value.startswith(("tcp://", "udp://", "sctp://"))
    return is_port or _SERVICE_LINK.search(variable) is not None


def _build(kind: type[Any], settings: Settings, prefix: str, problems: list[Problem]) -> object:
    """Make one dataclass of the tree, taking its settings out of `settings`. A wrong one keeps its default."""
    values: dict[str, Any] = {}
    wrong: list[str] = []
    hints = get_type_hints(kind, include_extras=True)
    for part in dataclasses.fields(kind):
        name, hint = f"{prefix}{part.name}", hints[part.name]
        plain = bare(hint)
        if is_section(hint):
            values[part.name] = _build(plain, settings, f"{name}.", problems)
        elif get_origin(plain) is dict:
            values[part.name] = _build_table(plain, settings, f"{name}.", problems)
        elif name in settings and plain == tuple[StudentConfig, ...]:
            values[part.name] = _build_students(settings.pop(name), problems)
        elif name in settings:
            num_known = len(problems)
            values[part.name] = _convert(settings.pop(name), hint, problems)
            if len(problems) > num_known:
                wrong.append(part.name)
    for name in wrong:
        del values[name]
    built: object = kind(**values)
    if isinstance(built, CHECKED):
        # A wrong setting has its default here: a complaint that the default does not fit the others would help nobody.
        known = {problem.setting for problem in problems}
        found = [
            problem
            for problem in built.problems()
            if f"{prefix}{problem.setting}" not in known and not any(map(problem.is_about, wrong))
        ]
        problems += [problem.within(prefix) for problem in found]
    return built


def _build_table(hint: Any, settings: Settings, prefix: str, problems: list[Problem]) -> dict[Any, Any]:
    """A table with the entries that are valid."""
    key_hint, value_hint = get_args(hint)
    table = {}
    for name in [name for name in settings if name.startswith(prefix)]:
        given = settings.pop(name)
        num_known = len(problems)
        key = _convert(Given(name, name.removeprefix(prefix), given.origin), key_hint, problems)
        value = _convert(given, value_hint, problems)
        if len(problems) == num_known:
            table[key] = value
    return table


def _build_students(given: Given, problems: list[Problem]) -> tuple[StudentConfig, ...]:
    """From the folder of the only student, or from the tables of several."""
    if isinstance(given.value, str):
        return (StudentConfig(folder=_convert(given, Path | None, problems)),)
    tables = given.value
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        said = f"{given.origin}: must be a folder or [[student]] tables"
        problems.append(Problem(setting="student", said=said))
        return ()
    file = given.origin.removesuffix(": student")
    students: list[StudentConfig] = []
    for index, table in enumerate(tables):
        prefix = f"student[{index}]."
        settings = _flatten(table, prefix, file)
        student = _build(StudentConfig, settings, prefix, problems)
        problems += _unknown(settings, setting_names(StudentConfig, prefix))
        if isinstance(student, StudentConfig):
            students.append(student)
    for index, student in enumerate(students):
        taken = [other.name for other in students[:index] if other.name is not None]
        why = None if student.name is None else name_problem(student.name, taken)
        if why is not None:
            problems.append(Problem(setting=f"student[{index}].name", said=f"{given.origin}: {why}"))
    return tuple(students)


def _convert(given: Given, hint: Any, problems: list[Problem]) -> Any:
    try:
        if bare(hint) is Path:
            return Path(os.path.expanduser(msgspec.convert(given.value, str)))
        return msgspec.convert(_listed(given, hint), hint, strict=not given.is_text)
    except msgspec.ValidationError as error:
        shown = "(not shown)" if _SECRET.search(given.origin) else repr(given.value)
        said = f"{given.origin} = {shown}: {wrong_value(error, hint)}"
        problems.append(Problem(setting=given.name, said=said))
        return None


def _listed(given: Given, hint: Any) -> Any:
    """In a flag or a variable a list is written with commas."""
    if not (given.is_text and get_origin(bare(hint)) is tuple):
        return given.value
    return [part.strip() for part in given.value.split(",") if part.strip()]
