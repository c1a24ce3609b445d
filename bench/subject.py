"""What every subject of the bench is: something that opens and answers some of the tasks."""

from collections.abc import Callable, Mapping
from typing import Protocol

from bench.protocol import Answer, Setup, Task

Measure = Callable[..., Answer]


class SubjectAbsent(Exception):
    """The subject cannot run here; the text names the mend."""


class Subject(Protocol):
    """Something to be measured. `measures` maps task types to what answers them; a missing one is unsupported."""

    def open(self, setup: Setup) -> str:
        """Load, and return the version.

        Raises: SubjectAbsent.
        """
        ...

    @property
    def measures(self) -> Mapping[type[Task], Measure]: ...

    def close(self) -> None: ...
