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
from typing import Annotated, Any, Literal, get_type_hints

import msgspec
from msgspec import Meta

from engines.config import EngineConfig
from models.errors import ConfigError
from models.fetch import cache_folder

ENV_PREFIX = "FENHE_"
NOT_SETTINGS = frozenset({"FENHE_CACHE", "FENHE_CONFIG"})
"""Variables with our prefix that are read elsewhere: where models are kept and where the file is."""

_SERVICE_LINK = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT(_\w+)?$|_PORT_[0-9]+_(TCP|UDP|SCTP)(_\w+)?$")

Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0.0)]


@dataclass(slots=True, kw_only=True, frozen=True)
class Limits:
    """Bounds on what one client may ask for. Token limits of None are the student's context."""

    max_body_bytes: Positive = 2 * 1024 * 1024
    max_prompt_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    max_prompts: Positive = 32
    max_requests: Positive = 512
    body_timeout_s: Seconds = 30.0
    request_timeout_s: Seconds = 600.0


@dataclass(slots=True, kw_only=True, frozen=True)
class ServerConfig:
    """`student` None is the default one. `grace_s` is how long running requests may take after SIGTERM."""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8000
    student: Path | None = None
    grace_s: Annotated[float, Meta(ge=0.0)] = 30.0
    keep_alive_s: Positive = 5
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    access_log: bool = False
    limits: Limits = field(default_factory=Limits)
    engine: EngineConfig = field(default_factory=EngineConfig)


@dataclass(slots=True, frozen=True)
class Setting:
    """A value and where it was written. Text from the environment may stand for a number."""

    value: Any
    origin: str
    is_text: bool = False


Settings = dict[str, Setting]
"""By dotted name: `limits.max_body_bytes`."""


def setting_names(kind: type[Any] = ServerConfig, prefix: str = "") -> list[str]:
    """Every setting by its dotted name, in the order of the tree."""
    hints = get_type_hints(kind)
    names = []
    for part in dataclasses.fields(kind):
        name = f"{prefix}{part.name}"
        inner = hints[part.name]
        names += (
            setting_names(inner, f"{name}.") if isinstance(inner, type) and dataclasses.is_dataclass(inner) else [name]
        )
    return names


def flag_of(name: str) -> str:
    """`limits.max_body_bytes` is `--max-body-bytes`: the last word of a setting names it alone."""
    return "--" + name.rpartition(".")[2].replace("_", "-")


def load_config(flags: Mapping[str, str | None], environ: Mapping[str, str], file: Path | None = None) -> ServerConfig:
    """Compose the settings; `flags` has texts by dotted name, None where a flag was not given.

    Raises: ConfigError that lists every mistake.
    """
    problems: list[str] = []
    named = file if file is not None else environ.get("FENHE_CONFIG")
    settings = _read_file(Path(named), problems) if named else {}
    settings |= _read_environ(environ)
    settings |= {name: Setting(text, flag_of(name), is_text=True) for name, text in flags.items() if text is not None}
    config = _build(ServerConfig, settings, "", problems)
    problems[:0] = [f"{setting.origin}: no such setting" for setting in settings.values()]
    if problems or config is None:
        raise ConfigError("; ".join(problems))
    assert isinstance(config, ServerConfig)
    return _with_native_folder(config, environ)


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


def _build(kind: type[Any], settings: Settings, prefix: str, problems: list[str]) -> object | None:
    """Make one dataclass of the tree, taking its settings out of `settings`; None when one was wrong."""
    num_before = len(problems)
    values: dict[str, Any] = {}
    hints = get_type_hints(kind, include_extras=True)
    for part in dataclasses.fields(kind):
        name = f"{prefix}{part.name}"
        if dataclasses.is_dataclass(hints[part.name]):
            values[part.name] = _build(hints[part.name], settings, f"{name}.", problems)
        elif name in settings:
            values[part.name] = _convert(settings.pop(name), hints[part.name], problems)
    if len(problems) > num_before:
        return None
    built: object = kind(**values)
    if isinstance(built, EngineConfig):
        problems += [f"{prefix}{problem}" for problem in built.problems()]
    return built


def _convert(setting: Setting, hint: Any, problems: list[str]) -> Any:
    try:
        if hint == Path | None:
            return Path(os.path.expanduser(msgspec.convert(setting.value, str)))
        return msgspec.convert(setting.value, hint, strict=not setting.is_text)
    except msgspec.ValidationError as error:
        problems.append(f"{setting.origin} = {setting.value!r}: {error}")
        return None
