"""Why nothing is scored now: of one student, in words for operators."""

from engines.contract import EngineStatus
from router.decision import Health
from router.quality.config import OnlineQualityConfig
from server.students.student import ServedStudent


def why_unable(student: ServedStudent, status: EngineStatus) -> str | None:
    """What no waiting for a quiet moment helps against; None where the student can score answers."""
    name, full = student.name, student.manifest.full_path.name
    health = student.state().health
    if health is Health.UNHEALTHY:
        return f"the engine of `{name}` is unhealthy" + (f": {status.error}" if status.error else "")
    if student.remote is not None:
        return f"`{name}` is remote: its upstreams have no scores"
    if not status.can_score:
        return f"the engine of `{name}` cannot score answers"
    if health is Health.DRAINING:
        return f"`{name}` is draining"
    if not any(one.is_servable for one in status.paths if one.path == full):
        return f"the full path of `{name}` is not loaded"
    return None


def why_busy(student: ServedStudent, status: EngineStatus, config: OnlineQualityConfig) -> str | None:
    """What passes by itself: others come first."""
    num_queued = student.admission.turns.queued.num_sequences
    if num_queued:
        return f"{num_queued} sequences wait for `{student.name}`"
    if status.num_running > config.max_running:
        return f"{status.num_running} sequences run in `{student.name}`, more than {config.max_running}"
    return None


def why_spent(student: ServedStudent, left_s: float, config: OnlineQualityConfig) -> str | None:
    if left_s > 0.0:
        return None
    return f"scoring has had its {config.engine_share:.2%} of the time that the engine of `{student.name}` works"
