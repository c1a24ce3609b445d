"""What a workload file may say. `reading.py` makes a `Workload` of one; the files that ship are in `workloads/`."""

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=1)]
Task = Literal["math", "legal", "fact", "creative", "general"]
Language = Literal["en", "zh"]
Kind = Literal["closed", "constant", "poisson", "trace"]


class Table(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of a workload file's tables."""


class Schedule(Table, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When sessions begin. `closed`: `concurrency` users, each of whom begins when its last session has ended. The
    others are open loops, which never wait for the server: at even distances, as a Poisson process, or at the times of
    a `trace`.

    Units: `rate` sessions per second; what begins within `warm_up_s` is not measured. No request may take longer than
    `drain_s`, and that long after the end what still runs is given up as failed.
    """

    kind: Kind
    rate: Positive | None = None
    concurrency: Count | None = None
    trace: str | None = None
    warm_up_s: NotNegative = 10.0
    duration_s: Positive = 60.0
    drain_s: Positive = 60.0

    @property
    def is_open(self) -> bool:
        return self.kind != "closed"


class Lengths(Table, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Tokens, log-normal around `median`; what falls outside is drawn again. `least == most`: always that many.

    `spread` is the standard deviation of the logarithm.
    """

    median: Count
    least: Count
    most: Count
    spread: Positive = 0.7


class Prompts(Table, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`tasks` and `languages` are weights. `system_tokens`: about how long the system prompt is that all sessions
    share."""

    tasks: dict[Task, NotNegative]
    tokens: Lengths
    languages: dict[Language, NotNegative] = field(default_factory=lambda: {"en": 1.0})
    system_tokens: Annotated[int, Meta(ge=0)] = 0


class Answers(Table, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`ignore_eos`: every answer has exactly the tokens drawn for it, on servers that know the field."""

    tokens: Lengths
    ignore_eos: bool = True
    temperature: NotNegative = 0.0


class Repeats(Table, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`share` of the sessions, exactly, repeat one of `population` prompts, the i-th of each task with a weight of i
    ** -exponent (Zipf). All of them are asked before the clock starts, so a result cache answers exactly that share; a
    run in which it differs by more than `tolerance` is invalid.
    """

    share: Share
    population: Count = 50
    exponent: NotNegative = 1.0
    tolerance: Share = 0.02


class Sessions(Table, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Conversations of several turns, each with what was said before; `think_s` passes between two turns."""

    turns: Count = 1
    think_s: NotNegative = 0.0


class Behaviour(Table, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Shares of requests: that leave after their first token, and whose answer is bound to a JSON schema."""

    cancel_share: Share = 0.0
    bound_share: Share = 0.0


class Tenant(Table, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`key_env` names the variable that has its API key."""

    name: str
    share: NotNegative = 1.0
    key_env: str | None = None


class Slo(Table, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request is good when it is within all of these; a run keeps to them when its 95th percentiles are."""

    ttft_ms: Positive | None = None
    tpot_ms: Positive | None = None
    e2el_ms: Positive | None = None


class Limit(Table, frozen=True, kw_only=True, forbid_unknown_fields=True):
    least: float | None = None
    most: float | None = None


class Validity(Table, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Beyond these shares a run says more of the generator than of the server: of sessions that begin late, and of the
    generator's core."""

    most_late: Share = 0.01
    most_generator_cpu: Share = 0.8


class Workload(Table, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`body` is added to every request's body. `thresholds` name figures; a run that misses one ends with status 1."""

    name: str
    schedule: Schedule
    prompts: Prompts
    answers: Answers
    about: str = ""
    model: str = "auto"
    seeds: Annotated[list[int], Meta(min_length=1)] = field(default_factory=lambda: [1])
    repeats: Repeats | None = None
    sessions: Sessions = Sessions()
    behaviour: Behaviour = Behaviour()
    tenants: list[Tenant] = []
    slo: Slo = Slo()
    validity: Validity = Validity()
    thresholds: dict[str, Limit] = {}
    body: dict[str, object] = {}
