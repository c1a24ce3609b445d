"""What to say about a wrong name or setting, so that it can be fixed without reading our code."""

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from typing import Any, Literal, get_args, get_origin

import msgspec

from models.bounds import find_bounds
from router.quality.config import PINNED_PATTERN

PATTERNS = {
    "^[0-9a-fA-F]{64}$": "a SHA-256 in hexadecimal (64 characters)",
    r"^(\*|[a-z][a-z0-9+.-]*://[^/\s]+)$": "an origin such as https://page.example, without a slash at its end, or *",
    r"^(\[[0-9a-fA-F:.]+\]|[^\s/:*@\[\]]+)$": "a name such as box.example or an address, without a port",
    r"^https?://[^\s/?#@]+(/[^\s?#]*)?$": "a base URL such as http://10.0.0.7:8000/v1, without a user, `?` and `#`",
    "^[A-Za-z_][A-Za-z0-9_]*$": "the name of an environment variable",
    "^[A-Za-z0-9._-]{1,64}$": "1 to 64 letters, digits and . _ -",
    "^[A-Za-z0-9._@-]{1,64}$": "1 to 64 letters, digits and . _ @ -",
    PINNED_PATTERN: "a task and a path, such as legal.wide",
}
"""The patterns of settings and key files, in words."""

_PATTERN = re.compile(r"Expected `str` matching regex (?P<pattern>'.*')(?P<place> - at `.*`)?$")
_BOUND = re.compile(r"Expected `(?:int|float)` [<>]=? \S+?(?P<place> - at `.*`)?$")
_CHOICE = re.compile(r"Invalid enum value .*?(?P<place> - at `.*`)?$", re.DOTALL)
LEAST_LIKENESS = 0.7
MAX_LIKENED_CHARS = 64
"""Longer names are not compared: no known name is that long, and a client's may be as long as its body."""


def wrong_value(error: msgspec.ValidationError, hint: Any) -> str:
    """What a value of this type must be. Never repeats the value, which may be a secret."""
    found = _PATTERN.match(str(error))
    meanings = {repr(pattern): meaning for pattern, meaning in PATTERNS.items()}
    if found is not None and found["pattern"] in meanings:
        return f"must be {meanings[found['pattern']]}{found['place'] or ''}"
    found = _BOUND.match(str(error))
    bounds = find_bounds(hint)
    if found is not None and bounds is not None:
        return f"must be {bounds}{found['place'] or ''}"
    found = _CHOICE.match(str(error))
    choices = list(_choices(hint))
    if found is not None and choices:
        return f"must be one of {', '.join(choices)}{found['place'] or ''}"
    return str(error)


def _choices(hint: Any) -> Iterator[str]:
    if get_origin(hint) is Literal:
        yield from get_args(hint)
    elif isinstance(hint, type) and issubclass(hint, Enum):
        yield from (member.value for member in hint)
    else:
        for inner in get_args(hint):
            yield from _choices(inner)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean ...?`, or nothing when no known name is near."""
    near = find_near(name, known)
    return "" if near is None else f"; did you mean {near}?"


def find_near(name: str, known: Iterable[str], least: float = LEAST_LIKENESS) -> str | None:
    """The known name that is most like this one; `least` is how like it must be, from 0 to 1."""
    if len(name) > MAX_LIKENED_CHARS:
        return None
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=least)
    return near[0] if near else None


def find_setting(name: str, known: Sequence[str]) -> str | None:
    """The setting that was meant: one of another section with this very name, or one with a name like it."""
    last = name.rpartition(".")[2]
    elsewhere = [one for one in known if one.rpartition(".")[2] == last]
    return elsewhere[0] if len(elsewhere) == 1 else find_near(name, known)
