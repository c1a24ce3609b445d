"""Bodies about online quality: a part of `/debug/state`, and pins."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from models.student.manifest import HeadKind
from router.quality.config import Mode
from router.quality.controller import Decider
from router.tasks import Task
from server.wire.base import Reply, RequestBody

Name = Annotated[str, Meta(min_length=1, max_length=128)]


class PathQuality(Reply, frozen=True, kw_only=True):
    """What a path with a head keeps of the full path on a task, with a 95 % interval; docs/online-quality.md.

    `gap_nats` is per token. `agreement` is the share of tokens that are the full path's likeliest, `expected_agreement`
    what it would be in the full path's own answers. `num_samples` is the effective number of scored answers,
    `num_scored` how many there were in all. Figures are null where no score weighs anything. `is_open`: default routing
    may take the path for the task; `decided_by` and `reason` say who decided that and why, null and empty: nobody yet.
    """

    student: str
    task: Task
    path: str
    head: HeadKind
    kept: float | None
    low: float | None
    high: float | None
    gap_nats: float | None
    agreement: float | None
    expected_agreement: float | None
    num_samples: float
    num_scored: int
    floor: float
    is_open: bool
    decided_by: Decider | None
    reason: str


class PinState(Reply, frozen=True, kw_only=True):
    """With `is_open` the path stays in default routing of the task, else out of it, whatever its figures say. `reason`
    is in the words of who decided, and may be empty."""

    student: str
    task: Task
    path: str
    is_open: bool
    decided_by: Decider
    reason: str


class QualityChange(Reply, frozen=True, kw_only=True):
    """`at` is in seconds since 1970."""

    at: float
    student: str
    task: Task
    path: str
    head: HeadKind
    action: Literal["take_out", "put_back", "pin", "unpin"]
    reason: str


class OnlineQualityState(Reply, frozen=True, kw_only=True):
    """`held`: why nothing is scored now, in words, null where something may be; `held_by_student` the same for each.
    Changes come newest first."""

    mode: Mode
    held: str | None
    held_by_student: dict[str, str | None]
    is_scoring: bool
    num_waiting: int
    num_scored: int
    left_out: dict[str, int]
    min_samples: int
    tasks: list[PathQuality]
    pins: list[PinState]
    changes: list[QualityChange]


class PinRequest(RequestBody, frozen=True, kw_only=True):
    """`student` may be left out where one alone has the path. `reason` is shown beside the pin."""

    task: Task
    path: Name
    student: Name | None = None
    is_open: bool = True
    reason: Annotated[str, Meta(max_length=200)] = ""


class PinList(Reply, frozen=True, kw_only=True):
    pins: list[PinState]


pin_decoder = msgspec.json.Decoder(PinRequest)
