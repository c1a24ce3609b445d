"""Every setting: its type, default and bounds, its flag and its variable."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from msgspec import Meta, to_builtins

from models.errors import ConfigError
from router.tasks import TASKS
from server.settings.fields import flag_of, variable_of
from server.settings.reading import load_config

HOME = {"HOME": "/home/somebody"}
INTS: tuple[float, ...] = (-1, 0, 1, 2, 3, 4, 5, 65_535, 65_536, 315_360_000, 315_360_001, 1 << 62)
FLOATS: tuple[float, ...] = (-1.0, 0.0, 1e-9, 0.5, 0.899, 0.9, 1.0, 1.001, 1e9)
BESIDE = {
    "cache.max_entry_bytes": {"cache.max_bytes": str(1 << 62)},
    "cache.max_bytes": {"cache.max_entry_bytes": "1"},
    "router.balanced": {"router.fast": "0", "router.fast_under_load": "0"},
    "router.fast": {"router.balanced": "1", "router.fast_under_load": "0"},
    "router.fast_under_load": {"router.balanced": "1", "router.fast": "1"},
    "online_quality.min_answer_tokens": {"online_quality.max_answer_tokens": str(INTS[-1])},
    "online_quality.max_answer_tokens": {"online_quality.min_answer_tokens": "1"},
    "online_quality.min_samples": {"online_quality.half_life_samples": str(INTS[-1])},
    "online_quality.half_life_samples": {"online_quality.min_samples": "1"},
    **{f"online_quality.floors_under_load.{task}": {f"online_quality.floors.{task}": "1"} for task in TASKS},
}
"""What else must be set so that a setting may have every value that its own bounds allow."""


def describe_settings(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    hints = get_type_hints(type(config), include_extras=True)
    for part in dataclasses.fields(config):
        name, default, hint = f"{prefix}{part.name}", getattr(config, part.name), hints[part.name]
        if dataclasses.is_dataclass(default):
            yield from describe_settings(default, f"{name}.")
            continue
        kind = spell_type(hint)
        told = {"type": kind, "default": to_builtins(default), **_text_bounds(hint)}
        if kind.startswith("dict") and "pattern" not in told:
            told |= {f"{name}.{task}": _bounds_of_entry(f"{name}.{task}") for task in TASKS}
        elif "[]" not in name and not kind.startswith("dict"):
            told |= {"flag": flag_of(name), "variable": variable_of(name), **_number_bounds(name, kind)}
        yield name, told


def spell_type(hint: Any) -> str:
    """A type without its bounds."""
    if get_origin(hint) is Annotated:
        return spell_type(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(sorted({spell_type(one) for one in get_args(hint)}, key=lambda one: (one == "null", one)))
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    if get_origin(hint) is not None:
        inner = [spell_type(one) for one in get_args(hint) if one is not Ellipsis]
        return f"{get_origin(hint).__name__} of {' to '.join(inner)}"
    if hint is NoneType:
        return "null"
    return "table" if dataclasses.is_dataclass(hint) else hint.__name__


def _text_bounds(hint: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for note in getattr(hint, "__metadata__", ()):
        if isinstance(note, Meta):
            found |= {key: getattr(note, key) for key in ("pattern", "min_length", "max_length") if getattr(note, key)}
    for inner in get_args(hint):
        found |= _text_bounds(inner)
    return found


def _number_bounds(name: str, kind: str) -> dict[str, float]:
    samples = {"int": INTS, "float": FLOATS}.get(kind.removesuffix(" or null"), ())
    beside = BESIDE.get(name, {})
    return _bounds(samples, lambda text: load_config({name: text, **beside}, HOME))


def _bounds_of_entry(name: str) -> dict[str, float] | None:
    """Those of an entry of a table; None when it cannot be at all."""
    beside = {variable_of(other): text for other, text in BESIDE.get(name, {}).items()}
    return _bounds(FLOATS, lambda text: load_config({}, {**HOME, **beside, variable_of(name): text})) or None


def _bounds(samples: Sequence[float], load: Callable[[str], object]) -> dict[str, float]:
    """The least and the greatest of our samples that is accepted, wherever the bound is written."""
    taken = [sample for sample in samples if _is_taken(str(sample), load)]
    if not taken:
        return {}
    return {"least": taken[0]} if taken[-1] == samples[-1] else {"least": taken[0], "greatest": taken[-1]}


def _is_taken(text: str, load: Callable[[str], object]) -> bool:
    try:
        load(text)
    except ConfigError:
        return False
    return True
