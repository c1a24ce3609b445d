"""Every error that fenhe raises on purpose. HTTP statuses are not here: they live in `server/wire/errors.py`.

ServingError
  ConfigError              wrong or missing settings, files or extras, found before serving begins
  BadRequest               the request itself is at fault
    UnsupportedField       a field that would change the output and is not supported
    ContextTooLong         prompt plus answer do not fit the student's context
    InvalidParameter       a value outside its range or of the wrong kind
  Unauthorized             no key, or an unknown one
  Forbidden                a known key that may not do this
  NotFound
    UnknownModel           no such student or path
    ThreadNotFound         a conversation that a client expects here; nothing is stored
  Overloaded               try again later: bounds on queued work were reached
    QueueFull
    DeadlineUnreachable    what is queued would make the answer late
    RateLimited            a key's own limits
      RequestTooLarge      one request asks for more than the key may have in a minute
    UpstreamBusy           the upstream of a remote student takes no more
  Unavailable              try again later: what the request needs is not there yet, or is broken
    PathLoading
    EngineUnhealthy
    Stopping               this server, or the student, is being stopped on purpose
    UpstreamFailed         the upstream of a remote student does not answer, or not as it should
    UpstreamModelMissing   it has no such model
  LoopDetected             a request came back to this server through its upstreams
  DeadlineExceeded
  EngineFault              our fault
    StepFailed             a forward pass raised; the sequences in it are lost
    GrammarFailed          a sequence could not be kept within its grammar
    WeightsError           a weights file is damaged, incomplete or of an unsupported kind
    SequenceStateError
"""

from dataclasses import dataclass
from typing import ClassVar


class ServingError(Exception):
    """Root of the tree. `code` is the stable, machine-readable name clients see; `param` names the field at fault."""

    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


@dataclass(slots=True, kw_only=True, frozen=True)
class Problem:
    """One mistake. `setting` is the dotted name of the setting at fault, None where none is; `others` are further
    settings that it concerns: they contradict the first, or were probably meant instead."""

    said: str
    setting: str | None = None
    others: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.said

    def is_about(self, name: str) -> bool:
        """Whether it is about this setting, or a setting of this section."""
        return any(one == name or one.startswith(f"{name}.") for one in (self.setting or "", *self.others))

    def within(self, prefix: str) -> "Problem":
        """The same problem with `prefix` (such as `engine.`) before the names of its settings."""
        setting = None if self.setting is None else f"{prefix}{self.setting}"
        others = tuple(f"{prefix}{one}" for one in self.others)
        return Problem(said=f"{prefix}{self.said}", setting=setting, others=others)


class ConfigError(ServingError):
    """`problems` holds the mistakes one by one; the message names them all."""

    code = "config_error"

    def __init__(self, *problems: Problem | str) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = tuple(one if isinstance(one, Problem) else Problem(said=one) for one in problems)


class BadRequest(ServingError):
    code = "invalid_request"


class UnsupportedField(BadRequest):
    code = "unsupported_parameter"


class ContextTooLong(BadRequest):
    code = "context_length_exceeded"


class InvalidParameter(BadRequest):
    code = "invalid_value"


class Unauthorized(ServingError):
    code = "invalid_api_key"


class Forbidden(ServingError):
    code = "permission_denied"


class NotFound(ServingError):
    code = "not_found"


class UnknownModel(NotFound):
    code = "model_not_found"


class ThreadNotFound(NotFound):
    code = "thread_not_found"


class Overloaded(ServingError):
    code = "overloaded"


class QueueFull(Overloaded):
    code = "queue_full"


class DeadlineUnreachable(Overloaded):
    code = "deadline_unreachable"


class RateLimited(Overloaded):
    code = "rate_limit_exceeded"


class RequestTooLarge(RateLimited):
    code = "request_exceeds_rate_limit"


class UpstreamBusy(Overloaded):
    code = "upstream_busy"


class Unavailable(ServingError):
    code = "unavailable"


class PathLoading(Unavailable):
    code = "path_loading"


class EngineUnhealthy(Unavailable):
    code = "engine_unhealthy"


class Stopping(Unavailable):
    code = "stopping"


class UpstreamFailed(Unavailable):
    code = "upstream_failed"


class UpstreamModelMissing(Unavailable):
    code = "upstream_model_missing"


class LoopDetected(ServingError):
    code = "loop_detected"


class DeadlineExceeded(ServingError):
    code = "deadline_exceeded"


class EngineFault(ServingError):
    code = "engine_fault"


class StepFailed(EngineFault):
    code = "step_failed"


class GrammarFailed(EngineFault):
    code = "grammar_failed"


class WeightsError(EngineFault):
    code = "weights_error"


class SequenceStateError(EngineFault):
    code = "sequence_state_error"


def reason_of(error: OSError) -> str:
    """What the system refused, and the file where it names one: `No space left on device: '/cache/model.gguf'`."""
    reason = error.strerror or str(error)
    return reason if error.filename is None else f"{reason}: {str(error.filename)!r}"
