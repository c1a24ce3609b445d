"""The contract of a subject, which is what a bench measures: it opens, and answers some of the tasks."""

from collections.abc import Callable, Mapping
from typing import Protocol

from bench.protocol import Answer, Setup, Task

Measure = Callable[..., Answer]


class SubjectAbsent(Exception):
    """The subject cannot run here; the text says what is missing and how to get it."""


class Subject(Protocol):
    """`measures` maps each type of task to the method that answers it; a missing type is unsupported."""

    def open(self, setup: Setup) -> str:
        """Load, and return the version.

        Raises: SubjectAbsent.
        """
        ...

    @property
    def measures(self) -> Mapping[type[Task], Measure]: ...

    def close(self) -> None: ...
