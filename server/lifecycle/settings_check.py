"""Checks of whole settings before they are used: the same at start, on reload and in `fenhe config check`."""

from collections.abc import Callable
from typing import TypeVar

from models.errors import ConfigError, Problem
from server.access.keys import Key, check_exposure, load_keys
from server.lifecycle.kv_precision_check import kv_precision_problems
from server.settings.config import Draft, ServerConfig
from server.settings.optional_packages import missing_packages

T = TypeVar("T")


def read_sound(
    draft: Draft, listening: Callable[[ServerConfig], ServerConfig] | None = None
) -> tuple[ServerConfig, tuple[Key, ...]]:
    """Settings without a mistake, and their keys. `listening` returns them with the address in use, if that differs.

    Raises: ConfigError that lists every mistake.
    """
    config, problems = draft()
    keys = look_over(config, problems, listening=None if listening is None else listening(config))
    if problems:
        raise ConfigError(*problems)
    return config, keys


def look_over(
    config: ServerConfig, problems: list[Problem], *, listening: ServerConfig | None = None
) -> tuple[Key, ...]:
    """The keys of these settings. Adds to `problems` what is wrong beyond single values: missing packages, KV in a
    precision that students cannot have, the key file, a server that would be open to everybody. `listening` has the
    address in use, where it differs."""
    is_sure = not any(problem.is_about("keys") for problem in problems)  # else there may be keys once it is fixed
    problems += missing_packages(config)
    problems += kv_precision_problems(config)
    keys = collect(lambda: load_keys(config.keys), problems)
    if keys is not None and is_sure:
        collect(lambda: check_exposure(listening or config, keys), problems)
    return keys or ()


def collect(work: Callable[[], T], problems: list[Problem]) -> T | None:
    """What `work` returns; None when it raises, and its problems are added to `problems`."""
    try:
        return work()
    except ConfigError as error:
        problems += error.problems
        return None
