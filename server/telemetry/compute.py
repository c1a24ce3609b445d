"""What was computed, and what the full path with the exact head would have taken for the same tokens.

Definitions: in multiply-adds, as `server/generation/compute.py` counts them, of every sequence that began, also of one
that was aborted or failed. An answer of the result cache, and one that shares another request's generation, adds to
neither: nothing was computed for it. Saved is full less spent.
"""

from prometheus_client import CollectorRegistry, Counter

from router.tasks import Task
from server.telemetry.series import forget_series

_LABELS = ("student", "task", "path")


class ComputeMetrics:
    """Owned by the event loop. The path is the one that ran."""

    def __init__(self, registry: CollectorRegistry) -> None:
        text = "Multiply-adds of what was generated."
        self._spent = Counter("fenhe_compute_multiply_adds", text, _LABELS, registry=registry)
        text = "What the full path with the exact head would have taken for the same tokens."
        self._full = Counter("fenhe_compute_full_multiply_adds", text, _LABELS, registry=registry)

    def observe(self, student: str, task: Task, path: str, *, spent: int, full: int) -> None:
        self._spent.labels(student, task, path).inc(spent)
        self._full.labels(student, task, path).inc(full)

    def forget_student(self, name: str) -> None:
        for family in (self._spent, self._full):
            forget_series(family, _LABELS, name)
