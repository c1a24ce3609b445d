"""What routing is told of live quality: which paths are out, and which are good enough under load."""

from dataclasses import dataclass
from typing import NamedTuple

from models.student.manifest import HeadKind
from router.tasks import Task


class PathUse(NamedTuple):
    """A path of a student, with one of its heads, on one task: what has a figure of its own."""

    student: str
    task: Task
    path: str
    head: HeadKind


@dataclass(slots=True, kw_only=True, frozen=True)
class LiveQuality:
    """`out`: taken by nobody who does not name the path. `enough_under_load`: good enough while the student is busy,
    whatever else is said of it. The full path with the exact head is never out."""

    out: frozenset[PathUse] = frozenset()
    enough_under_load: frozenset[PathUse] = frozenset()


NOTHING_KNOWN = LiveQuality()
