"""Packages that some settings need and fenhe does not install: whether they are there, without importing them."""

from collections.abc import Iterator
from importlib.util import find_spec

from models.errors import Problem
from server.settings.config import ServerConfig

REDIS = ("redis",)
REMOTE = ("aiohttp",)
OPENTELEMETRY = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")


def missing_packages(config: ServerConfig) -> list[Problem]:
    """What to install for these settings, a problem per extra."""
    return list(_missing(config))


def _missing(config: ServerConfig) -> Iterator[Problem]:
    if config.cache.enabled and config.cache.url is not None and not _are_there(REDIS):
        yield Problem(setting="cache.url", said="cache.url needs the Redis client: pip install 'fenhe[redis]'")
    if any(student.engine == "remote" for student in config.student) and not _are_there(REMOTE):
        yield Problem(setting="student", said="remote students need an HTTP client: pip install 'fenhe[remote]'")
    if config.tracing.enabled and not _are_there(OPENTELEMETRY):
        yield Problem(setting="tracing.enabled", said="tracing needs OpenTelemetry: pip install 'fenhe[otel]'")


def _are_there(modules: tuple[str, ...]) -> bool:
    try:
        return all(find_spec(module) is not None for module in modules)
    except ModuleNotFoundError:  # a parent package is missing
        return False
