"""All settings of the server in one frozen tree, and the only place that reads the environment and TOML.

A setting is named by its place in the tree: `limits.max_body_bytes` is `[limits] max_body_bytes = ...` in a
file, `FENHE_LIMITS__MAX_BODY_BYTES` in the environment and `--max-body-bytes` on the command line. Flags win
over the environment, that over the file, that over defaults.
"""

import dataclasses
import os.path
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from engines.config import EngineConfig
from models.bounds import Positive, Seconds, Share
from models.errors import ConfigError
from models.sources.fetch import cache_folder
from router.admission.admission import AdmissionConfig
from router.cache.config import CacheConfig
from router.policy import PolicyConfig
from router.pool import name_problem
from router.tasks import Task
from server.settings.suggestions import find_setting, wrong_value

ENV_PREFIX = "FENHE_"
NOT_SETTINGS = frozenset({"FENHE_API_KEY", "FENHE_CACHE", "FENHE_CONFIG"})
"""Variables with our prefix that are read elsewhere: a client's key, where models are kept and where the file is."""

_SELF_EXPLAINING = ("limits", "engine")
"""Sections whose settings are clear without their section's name."""

_SERVICE_LINK = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT(_\w+)?$|_PORT_[0-9]+_(TCP|UDP|SCTP)(_\w+)?$")

Sha256 = Annotated[str, Meta(pattern="^[0-9a-fA-F]{64}$")]
Origin = Annotated[str, Meta(pattern=r"^(\*|[a-z][a-z0-9+.-]*://[^/\s]+)$")]
"""As browsers send it, without a path, or `*`."""

_SECRET = re.compile(r"sha256|url|password|secret", re.IGNORECASE)
"""Settings whose value an error never shows: somebody may have put the key itself where its hash belongs."""


@dataclass(slots=True, kw_only=True, frozen=True)
class Limits:
    """Bounds on what one client may ask for. Token limits of None are the student's context.

    The head is the request line and the headers. `write_timeout_s` is how long a client may take to make room for more
    of its answer. `max_schema_bytes` is for the schemas of `response_format` and `tools` together, `grammar_timeout_s`
    for making a grammar of them.
    """

    max_body_bytes: Positive = 2 * 1024 * 1024
    max_prompt_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    max_prompts: Positive = 32
    max_requests: Positive = 512
    max_json_depth: Positive = 64
    max_head_bytes: Positive = 64 * 1024
    max_headers: Positive = 128
    max_url_bytes: Positive = 8 * 1024
    max_connections: Positive = 4096
    head_timeout_s: Seconds = 15.0
    body_timeout_s: Seconds = 30.0
    write_timeout_s: Seconds = 60.0
    request_timeout_s: Seconds = 600.0
    max_schema_bytes: Positive = 64 * 1024
    grammar_timeout_s: Seconds = 5.0


@dataclass(slots=True, kw_only=True, frozen=True)
class StudentConfig:
    """One student: `folder` None is the default one, `name` None the manifest's; without `tasks` it takes all."""

    folder: Path | None = None
    name: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    tasks: tuple[Task, ...] = ()


@dataclass(slots=True, kw_only=True, frozen=True)
class RouterConfig(PolicyConfig):
    """`enabled` False: nothing is classified, and without a wish every request takes the full path. `classifier` None
    is the file that ships with fenhe."""

    enabled: bool = True
    classifier: Path | None = None


@dataclass(slots=True, kw_only=True, frozen=True)
class AdminConfig:
    """Without the SHA-256 of a key there are no admin endpoints."""

    key_sha256: Sha256 | None = None


@dataclass(slots=True, kw_only=True, frozen=True)
class KeysConfig:
    """API keys: those of `file`, and those whose SHA-256 is listed. Without any, everybody may ask.

    The limits are those of keys that name none of their own. `metrics` True: `/metrics` needs a key too.
    """

    file: Path | None = None
    sha256: tuple[Sha256, ...] = ()
    requests_per_minute: Positive = 6_000
    tokens_per_minute: Positive = 10_000_000
    max_concurrent: Positive = 256
    metrics: bool = False


@dataclass(slots=True, kw_only=True, frozen=True)
class CorsConfig:
    """`origins` are those whose pages may call this server from a browser, `https://page.example` without a slash at
    its end, `*` for all; none by default."""

    origins: tuple[Origin, ...] = ()


@dataclass(slots=True, kw_only=True, frozen=True)
class TracingConfig:
    """OpenTelemetry by OTLP over HTTP. `endpoint` is the collector's base URL; None takes what OTEL_EXPORTER_OTLP_*
    say, or a collector on this machine. `sample_ratio` decides about requests that bring no `traceparent`.
    """

    enabled: bool = False
    endpoint: str | None = None
    service_name: Annotated[str, Meta(min_length=1)] = "fenhe"
    sample_ratio: Share = 1.0
    timeout_s: Seconds = 5.0
    metric_interval_s: Seconds = 30.0


@dataclass(slots=True, kw_only=True, frozen=True)
class ServerConfig:
    """`student` has all students, in order; written as a text it is the folder of the only one. `grace_s` is how long
    running requests may take after SIGTERM. `allow_no_keys` lets a server without keys listen beyond this machine."""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8000
    student: tuple[StudentConfig, ...] = (StudentConfig(),)
    grace_s: Annotated[float, Meta(ge=0.0)] = 30.0
    keep_alive_s: Positive = 5
    allow_no_keys: bool = False
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    access_log: bool = False
    limits: Limits = field(default_factory=Limits)
    engine: EngineConfig = field(default_factory=EngineConfig)
    router: RouterConfig = field(default_factory=RouterConfig)
    admin: AdminConfig = field(default_factory=AdminConfig)
    admission: AdmissionConfig = field(default_factory=AdmissionConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    keys: KeysConfig = field(default_factory=KeysConfig)
    cors: CorsConfig = field(default_factory=CorsConfig)
    tracing: TracingConfig = field(default_factory=TracingConfig)


@dataclass(slots=True, frozen=True)
class Setting:
    """A value and where it was written. Text from the environment may stand for a number."""

    value: Any
    origin: str
    is_text: bool = False


Settings = dict[str, Setting]
"""By dotted name: `limits.max_body_bytes`."""


def setting_names(kind: type[Any] = ServerConfig, prefix: str = "", *, with_tables: bool = False) -> list[str]:
    """Every setting that is one value, or a table of them, by its dotted name, in the order of the tree."""
    hints = get_type_hints(kind)
    names = []
    for part in dataclasses.fields(kind):
        name = f"{prefix}{part.name}"
        inner = hints[part.name]
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            names += setting_names(inner, f"{name}.", with_tables=with_tables)
        elif with_tables or get_origin(inner) is not dict:
            names.append(name)
    return names


def flag_of(name: str) -> str:
    """`limits.max_body_bytes` is `--max-body-bytes`, `router.fast` is `--router-fast`."""
    section, _, last = name.rpartition(".")
    return "--" + (last if section in _SELF_EXPLAINING else name.replace(".", "-")).replace("_", "-")


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
) -> tuple[ServerConfig, list[str]]:
    """The settings with every mistake in them; what is wrong has its default."""
    problems: list[str] = []
    named = file if file is not None else environ.get("FENHE_CONFIG")
    settings = _read_file(Path(named), problems) if named else {}
    settings |= _read_environ(environ)
    settings |= {name: Setting(text, flag_of(name), is_text=True) for name, text in flags.items() if text is not None}
    config = _build(ServerConfig, settings, "", problems)
    problems[:0] = _unknown(settings, setting_names(with_tables=True))
    assert isinstance(config, ServerConfig)
    return _with_native_folder(config, environ), problems


def _unknown(settings: Settings, known: list[str]) -> list[str]:
    return [f"{setting.origin}: no such setting{_hint(name, setting, known)}" for name, setting in settings.items()]


def _hint(name: str, setting: Setting, known: list[str]) -> str:
    """The name that was meant, written as this one is."""
    near = find_setting(name, known)
    if near is None:
        return ""
    return f"; did you mean {variable_of(near) if setting.is_text else near}?"


def variable_of(name: str) -> str:
    """`limits.max_body_bytes` is `FENHE_LIMITS__MAX_BODY_BYTES`."""
    return ENV_PREFIX + name.replace(".", "__").upper()


def _with_native_folder(config: ServerConfig, environ: Mapping[str, str]) -> ServerConfig:
    """Compiled operators are kept in the cache unless another place is set."""
    if config.engine.native_folder is not None:
        return config
    engine = dataclasses.replace(config.engine, native_folder=cache_folder(environ) / "native")
    return dataclasses.replace(config, engine=engine)


def _read_file(file: Path, problems: list[str]) -> Settings:
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        problems.append(f"{file}: cannot be read: {error}")
        return {}
    return _flatten(table, "", str(file))


def _flatten(table: Mapping[str, Any], prefix: str, origin: str) -> Settings:
    settings: Settings = {}
    for key, value in table.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            settings |= _flatten(value, f"{name}.", origin)
        else:
            settings[name] = Setting(value, f"{origin}: {name}")
    return settings


def _read_environ(environ: Mapping[str, str]) -> Settings:
    settings: Settings = {}
    for variable, value in environ.items():
        if variable.startswith(ENV_PREFIX) and variable not in NOT_SETTINGS and not _is_service_link(variable, value):
            name = variable.removeprefix(ENV_PREFIX).lower().replace("__", ".")
            settings[name] = Setting(value, variable, is_text=True)
    return settings


def _is_service_link(variable: str, value: str) -> bool:
    """Kubernetes sets FENHE_PORT=tcp://... and the like in every pod beside a Service named fenhe."""
    is_port = variable.endswith("_PORT") and value.startswith(("tcp://", "udp://", "sctp://"))
    return is_port or _SERVICE_LINK.search(variable) is not None


def _build(kind: type[Any], settings: Settings, prefix: str, problems: list[str]) -> object:
    """Make one dataclass of the tree, taking its settings out of `settings`; what is wrong keeps its default."""
    values: dict[str, Any] = {}
    wrong: list[str] = []
    hints = get_type_hints(kind, include_extras=True)
    for part in dataclasses.fields(kind):
        name = f"{prefix}{part.name}"
        hint = hints[part.name]
        num_known = len(problems)
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            values[part.name] = _build(hint, settings, f"{name}.", problems)
            continue
        if get_origin(hint) is dict:
            values[part.name] = _build_table(hint, settings, f"{name}.", problems)
        elif name in settings and hint == tuple[StudentConfig, ...]:
            values[part.name] = _build_students(settings.pop(name), problems)
        elif name in settings:
            values[part.name] = _convert(settings.pop(name), hint, problems)
        if len(problems) > num_known and hint != tuple[StudentConfig, ...]:  # of those, what is sound is kept
            values.pop(part.name, None)
            wrong.append(part.name)
    built: object = kind(**values)
    if isinstance(built, EngineConfig | PolicyConfig | AdmissionConfig | CacheConfig):
        problems += [f"{prefix}{problem}" for problem in built.problems() if not _is_about(problem, wrong)]
    return built


def _is_about(problem: str, names: list[str]) -> bool:
    """Whether a sentence is about settings that have their defaults because what was written is wrong."""
    return any(re.search(rf"\b{re.escape(name)}\b", problem) for name in names)


def _build_table(hint: Any, settings: Settings, prefix: str, problems: list[str]) -> dict[Any, Any]:
    """The entries of a table whose keys are free within their type."""
    key_hint, value_hint = get_args(hint)
    table = {}
    for name in [name for name in settings if name.startswith(prefix)]:
        setting = settings.pop(name)
        key = _convert(Setting(name.removeprefix(prefix), setting.origin), key_hint, problems)
        table[key] = _convert(setting, value_hint, problems)
    return table


def _build_students(setting: Setting, problems: list[str]) -> tuple[StudentConfig, ...]:
    """From the folder of the only student, or from the tables of several."""
    if isinstance(setting.value, str):
        return (StudentConfig(folder=_convert(setting, Path | None, problems)),)
    tables = setting.value
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        problems.append(f"{setting.origin}: must be a folder or [[student]] tables")
        return ()
    file = setting.origin.removesuffix(": student")
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
        problem = None if student.name is None else name_problem(student.name, taken)
        problems += [] if problem is None else [f"{setting.origin}: {problem}"]
    return tuple(students)


def _convert(setting: Setting, hint: Any, problems: list[str]) -> Any:
    try:
        if hint == Path | None:
            return Path(os.path.expanduser(msgspec.convert(setting.value, str)))
        return msgspec.convert(_listed(setting, hint), hint, strict=not setting.is_text)
    except msgspec.ValidationError as error:
        shown = "(not shown)" if _SECRET.search(setting.origin) else repr(setting.value)
        problems.append(f"{setting.origin} = {shown}: {wrong_value(error, hint)}")
        return None


def _listed(setting: Setting, hint: Any) -> Any:
    """A list is written with commas where only text can be."""
    if not (setting.is_text and get_origin(hint) is tuple):
        return setting.value
    return [part.strip() for part in setting.value.split(",") if part.strip()]
