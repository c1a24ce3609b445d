"""Bounds of numbers, written once beside the field: `Annotated[int, Meta(ge=1)]`.

msgspec checks them on what it reads. This module finds them, puts them into words, and checks values made in code.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from msgspec import Meta

from models.errors import Problem

Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0.0)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]


@dataclass(slots=True, kw_only=True, frozen=True)
class Bounds:
    """The bounds of a number. `least` and `most` are allowed values themselves, `above` is not."""

    least: float | None = None
    above: float | None = None
    most: float | None = None

    def has(self, value: float) -> bool:
        """Whether a value is within the bounds; NaN never is."""
        return (
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
        )

    def __str__(self) -> str:
        """What a value must be, such as `at least 4`."""
        if self.least is not None and self.most is not None:
            return f"from {self.least:g} to {self.most:.10g}"
        if self.above is not None:
            return f"more than {self.above:g}"
        return f"at least {self.least:g}" if self.least is not None else f"at most {self.most:.10g}"


def find_bounds(hint: Any) -> Bounds | None:
    """The bounds in the type of a number, of an optional number, or of a table's values; None where there are none."""
    for note in getattr(hint, "__metadata__", ()):
        if isinstance(note, Meta) and (note.ge, note.gt, note.le) != (None, None, None):
            return Bounds(least=note.ge, above=note.gt, most=note.le)
    found = (find_bounds(inner) for inner in _inner(hint))
    return next((bounds for bounds in found if bounds is not None), None)


def _inner(hint: Any) -> tuple[Any, ...]:
    return get_args(hint)[:1] if get_origin(hint) is Annotated else get_args(hint)


def out_of_bounds(config: Any) -> list[Problem]:
    """A problem for every number of a dataclass, and of its tables, that is not within its field's bounds."""
    hints = get_type_hints(type(config), include_extras=True)
    return [
        Problem(setting=name, said=f"{name} must be {bounds}, not {value}")
        for part in dataclasses.fields(config)
        if (bounds := find_bounds(hints[part.name])) is not None
        for name, value in _numbers(part.name, getattr(config, part.name))
        if not bounds.has(value)
    ]


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _numbers(f"{name}.{key}", one)
    elif isinstance(value, int | float):
        yield name, value
